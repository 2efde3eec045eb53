//! Values in DER: one tag, a length in its shortest form, the content (X.690 §8.1, §10.1).

/// The part that is wrong.
pub(super) type Flaw = &'static str;

/// The content of the one value that `der` is.
pub(super) fn whole<'a>(der: &'a [u8], tag: u8, flaw: Flaw) -> Result<Reader<'a>, Flaw> {
    let mut reader = Reader(der);
    let content = reader.take(tag, flaw)?;
    reader.end(flaw)?;
    Ok(content)
}

/// What is still to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

/// One value. The tag is its first byte alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value<'a> {
    pub(super) tag: u8,
    pub(super) content: &'a [u8],
}

impl<'a> Reader<'a> {
    /// The content of the next value, which must have this tag.
    pub(super) fn take(&mut self, tag: u8, flaw: Flaw) -> Result<Self, Flaw> {
        match self.any(flaw)? {
            value if value.tag == tag => Ok(Self(value.content)),
            _ => Err(flaw),
        }
    }

    /// The same, if there is one with this tag.
    pub(super) fn optional(&mut self, tag: u8) -> Result<Option<Self>, Flaw> {
        match self.0.first() {
            Some(first) if *first == tag => self.take(tag, "optional field").map(Some),
            _ => Ok(None),
        }
    }

    pub(super) fn any(&mut self, flaw: Flaw) -> Result<Value<'a>, Flaw> {
        let (tag, rest) = self.0.split_first().ok_or(flaw)?;
        let rest = after_tag(*tag, rest).ok_or(flaw)?;
        let (length, rest) = length(rest).ok_or(flaw)?;
        let (content, rest) = rest.split_at_checked(length).ok_or(flaw)?;
        self.0 = rest;
        Ok(Value { tag: *tag, content })
    }

    /// Nothing may be left.
    pub(super) fn end(self, flaw: Flaw) -> Result<(), Flaw> {
        if self.0.is_empty() { Ok(()) } else { Err(flaw) }
    }
}

/// What follows a tag, which has further bytes when its number is large (X.690 §8.1.2.4).
fn after_tag(tag: u8, mut rest: &[u8]) -> Option<&[u8]> {
    if tag & !CONSTRUCTED == 0 {
        return None; // Reserved (X.690 §8.1.2.2).
    }
    if tag & NUMBER != LONG {
        return Some(rest);
    }
    let mut number = 0_u32;
    loop {
        let (byte, following) = rest.split_first()?;
        rest = following;
        if number == 0 && *byte == 0x80 {
            return None;
        }
        number = number << 7 | u32::from(byte & 0x7f);
        if number > MOST_TAG {
            return None;
        }
        if *byte < 0x80 {
            break;
        }
    }
    let most = if tag & CLASS == 0 {
        MOST_UNIVERSAL_TAG
    } else {
        MOST_TAG
    };
    (u32::from(LONG)..=most).contains(&number).then_some(rest)
}

/// A length in its shortest form, and what follows it.
fn length(der: &[u8]) -> Option<(usize, &[u8])> {
    let (first, rest) = der.split_first()?;
    if *first < 0x80 {
        return Some((usize::from(*first), rest));
    }
    let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
    let length = match bytes {
        [0, ..] | [] => return None,
        bytes if bytes.len() > 4 => return None,
        bytes => bytes
            .iter()
            .fold(0, |length: u32, byte| length << 8 | u32::from(*byte)),
    };
    (length >= 0x80).then_some((usize::try_from(length).ok()?, rest))
}

/// Whether a type that X.680 defines is constructed if, and only if, it always is.
pub(super) fn is_of_its_kind(tag: u8) -> bool {
    let is_universal = tag & CLASS == 0;
    let always_constructed = matches!(tag & NUMBER, 8 | 11 | 16 | 17 | 29);
    // 15 is not given to any type; those from 31 on have a tag of several bytes and are not distinguished here.
    let is_defined = !matches!(tag & NUMBER, 15 | LONG);
    !is_universal || !is_defined || (tag & CONSTRUCTED != 0) == always_constructed
}

const CLASS: u8 = 0xc0;
pub(super) const CONSTRUCTED: u8 = 0x20;
const NUMBER: u8 = 0x1f;
/// In the place of the number: it follows.
const LONG: u8 = 0x1f;
/// The largest numbers of tags that BoringSSL reads.
const MOST_TAG: u32 = 0x1fff_ffff;
const MOST_UNIVERSAL_TAG: u32 = 0xff;

pub(super) const BOOLEAN: u8 = 0x01;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const NULL: u8 = 0x05;
pub(super) const OID: u8 = 0x06;
pub(super) const ENUMERATED: u8 = 0x0a;
pub(super) const UTF8_STRING: u8 = 0x0c;
pub(super) const NUMERIC_STRING: u8 = 0x12;
pub(super) const PRINTABLE_STRING: u8 = 0x13;
pub(super) const IA5_STRING: u8 = 0x16;
pub(super) const UTC_TIME: u8 = 0x17;
pub(super) const GENERALIZED_TIME: u8 = 0x18;
pub(super) const VISIBLE_STRING: u8 = 0x1a;
pub(super) const UNIVERSAL_STRING: u8 = 0x1c;
pub(super) const BMP_STRING: u8 = 0x1e;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_as_short_as_they_can_be() {
        assert_eq!(length(&[0x81, 0x80, 1]), Some((0x80, &[1][..])));
        for wrong in [
            &[0x80][..],
            &[0x81, 0x7f],
            &[0x82, 0, 0xff],
            &[0x85, 1, 0, 0, 0, 0],
            &[0x82, 1],
        ] {
            assert_eq!(length(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn tags_have_one_form() {
        assert_eq!(after_tag(0x0c, &[1]), Some(&[1][..]));
        assert_eq!(after_tag(0x1f, &[0x1f, 1]), Some(&[1][..]));
        assert_eq!(after_tag(0x9f, &[0x82, 0x00, 1]), Some(&[1][..]));
        let wrong = [
            &[0x1e][..],
            &[0x80, 0x1f],
            &[0x82, 0x00],
            &[0x9f],
            &[0xff, 0xff, 0xff, 0xff, 0x7f],
        ];
        for bytes in wrong {
            assert_eq!(after_tag(0x1f, bytes), None, "{bytes:?}");
        }
        assert_eq!(after_tag(0x20, &[1]), None);
    }
}
