//! Strings that are stored once and referenced by number, as long as they are used.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

/// Texts with their numbers.
#[derive(Debug, Default)]
pub(super) struct Interner {
    texts: Vec<Interned>,
    free: Vec<u32>,
    numbers: HashTable<u32>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Interned {
    text: Box<str>,
    uses: u32,
}

impl Interner {
    /// The number of a text, if it is in use.
    pub(super) fn find(&self, text: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(text);
        self.numbers
            .find(hash, |number| &*self.texts[*number as usize].text == text)
            .copied()
    }

    /// Counts one more use of a text and returns its number.
    pub(super) fn acquire(&mut self, text: &str) -> u32 {
        if let Some(number) = self.find(text) {
            self.texts[number as usize].uses += 1;
            return number;
        }
        let interned = Interned {
            text: text.into(),
            uses: 1,
        };
        let number = match self.free.pop() {
            Some(number) => {
                self.texts[number as usize] = interned;
                number
            }
            None => {
                let number = u32::try_from(self.texts.len()).expect("memory ends before four billion texts");
                self.texts.push(interned);
                number
            }
        };
        let Self {
            texts,
            numbers,
            hasher,
            ..
        } = self;
        numbers.insert_unique(hasher.hash_one(text), number, |number| {
            hasher.hash_one(&*texts[*number as usize].text)
        });
        number
    }

    /// Counts one use less; the number of an unused text is given to another one.
    pub(super) fn release(&mut self, number: u32) {
        let interned = &mut self.texts[number as usize];
        interned.uses -= 1;
        if interned.uses > 0 {
            return;
        }
        let text = std::mem::take(&mut interned.text);
        if let Ok(found) = self
            .numbers
            .find_entry(self.hasher.hash_one(&*text), |candidate| *candidate == number)
        {
            found.remove();
        }
        self.free.push(number);
    }

    /// The text of a number that is in use.
    pub(super) fn text(&self, number: u32) -> &str {
        &self.texts[number as usize].text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_a_number_until_the_last_use_ends() {
        let mut interner = Interner::default();
        let first = interner.acquire("unix:uid:1");
        assert_eq!(interner.acquire("unix:uid:1"), first);
        interner.release(first);
        assert_eq!(interner.find("unix:uid:1"), Some(first));
        interner.release(first);
        assert_eq!(interner.find("unix:uid:1"), None);
    }

    #[test]
    fn freed_numbers_are_given_again() {
        let mut interner = Interner::default();
        let numbers: Vec<u32> = (0..100).map(|n| interner.acquire(&format!("t{n}"))).collect();
        for number in &numbers {
            interner.release(*number);
        }
        for n in 100..200 {
            assert!(interner.acquire(&format!("t{n}")) < 100);
        }
        assert_eq!(interner.texts.len(), 100);
        for n in 100..200 {
            let text = format!("t{n}");
            assert_eq!(interner.text(interner.find(&text).unwrap()), text);
        }
    }
}
