//! Certificate serial numbers.

use ring::rand::{SecureRandom, SystemRandom};

use super::der;

/// A certificate serial number, uniform in [1, 2^128-1] (RFC 5280 §4.1.2.2: positive, at most 20 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial(u128);

impl Serial {
    /// Draws a number from the system's generator; `None` when that fails.
    pub fn draw(random: &SystemRandom) -> Option<Self> {
        loop {
            let mut bytes = [0; 16];
            random.fill(&mut bytes).ok()?;
            if let Some(serial) = Self::new(u128::from_be_bytes(bytes)) {
                return Some(serial);
            }
        }
    }

    /// Every number but zero.
    pub fn new(number: u128) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }

    /// The number in decimal, as stores and the API write it.
    pub fn to_decimal(self) -> String {
        self.0.to_string()
    }

    pub(super) fn to_der(self) -> Vec<u8> {
        der::unsigned_integer(&self.0.to_be_bytes())
    }

    /// Whether the content bytes of a DER integer hold this number in its shortest form.
    pub(super) fn is_encoded_as(self, content: &[u8]) -> bool {
        self.to_der()[2..] == *content
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_not_a_serial() {
        assert_eq!(Serial::new(0), None);
    }

    #[test]
    fn the_largest_serial_takes_seventeen_bytes() {
        let der = Serial::new(u128::MAX).unwrap().to_der();
        assert_eq!(der[..3], [2, 17, 0]);
        assert_eq!(der.len(), 19);
    }

    #[test]
    fn draws_differ() {
        let random = SystemRandom::new();
        assert_ne!(Serial::draw(&random), Serial::draw(&random));
    }
}
