//! Pages of lists: how much a request asks for, where its page begins, and the token of the next page.

use super::status::Refusal;

/// One page while it is filled.
#[derive(Debug)]
pub struct Page<T> {
    items: Vec<T>,
    /// How many more rows fit.
    room: usize,
    /// Whether the request asks for everything at once. Then no token is read or given.
    is_whole_list: bool,
    begins: String,
    next: String,
}

impl<T> Page<T> {
    /// The page that a request asks for: the whole list, unless its size is above 0.
    pub fn new(size: i32, token: String) -> Self {
        let size = usize::try_from(size).ok().filter(|size| *size > 0);
        Self {
            items: Vec::new(),
            room: size.unwrap_or(usize::MAX),
            is_whole_list: size.is_none(),
            begins: size.map_or_else(String::new, |_| token),
            next: String::new(),
        }
    }

    /// The token after which it begins; empty at the beginning of the list.
    pub fn begins_after(&self) -> &str {
        &self.begins
    }

    /// The same, where tokens are rows.
    ///
    /// # Errors
    /// `INTERNAL` for a token that is none, as SPIRE has it.
    pub fn begins_after_row(&self, what: &str) -> Result<u64, Refusal> {
        let token = &self.begins;
        if token.is_empty() {
            return Ok(0);
        }
        token
            .parse()
            .map_err(|_error| Refusal::internal(format!("{what}: could not parse token '{token}'")))
    }

    /// Whether more fits.
    pub fn has_room(&self) -> bool {
        self.room > 0
    }

    /// How many rows fit, at most `most`.
    pub fn room(&self, most: u32) -> u32 {
        u32::try_from(self.room).map_or(most, |room| room.min(most))
    }

    /// Adds an item; the next page begins after its token.
    pub fn push(&mut self, item: T, token: impl ToString) {
        self.items.push(item);
        self.pass_over(token);
    }

    /// Counts a row that is not shown as if it were.
    pub fn pass_over(&mut self, token: impl ToString) {
        self.room = self.room.saturating_sub(1);
        if !self.is_whole_list {
            self.next = token.to_string();
        }
    }

    /// What it holds, and the token of the next page; empty when nothing was found.
    pub fn finish(self) -> (Vec<T>, String) {
        (self.items, self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_list_reads_and_gives_no_token() {
        for size in [0, -1] {
            let mut page = Page::new(size, "x".to_owned());
            assert_eq!(page.begins_after_row("failed").unwrap(), 0, "{size}");
            assert_eq!(page.room(100), 100);
            page.push('a', 1);
            assert!(page.has_room());
            assert_eq!(page.finish(), (vec!['a'], String::new()));
        }
    }

    #[test]
    fn a_page_ends_at_its_size_and_names_its_last_row_shown_or_not() {
        let mut page = Page::new(2, "7".to_owned());
        assert_eq!(page.begins_after_row("failed").unwrap(), 7);
        assert_eq!((page.room(100), page.room(1)), (2, 1));
        page.push('a', 8);
        assert!(page.has_room());
        page.pass_over(9);
        assert!(!page.has_room());
        assert_eq!(page.finish(), (vec!['a'], "9".to_owned()));
    }

    #[test]
    fn a_page_of_nothing_has_none_behind_it_and_a_token_that_is_no_row_is_refused() {
        let page = Page::<char>::new(2, "7".to_owned());
        assert_eq!(page.finish(), (Vec::new(), String::new()));
        let page = Page::<char>::new(2, "-7".to_owned());
        let refusal = page.begins_after_row("failed").unwrap_err();
        assert_eq!(refusal.message(), "failed: could not parse token '-7'");
    }
}
