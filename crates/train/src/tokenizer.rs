//! Text to tokens and back.

/// The byte-level tokeniser: token `i` is byte `i`, so any text has an encoding and there is
/// nothing to train or to download.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes;

impl Bytes {
    /// Number of distinct tokens.
    pub const VOCABULARY: usize = 256;

    /// One token per byte.
    pub fn encode(self, text: &[u8]) -> Vec<u16> {
        text.iter().map(|&byte| u16::from(byte)).collect()
    }

    /// The bytes of `tokens`. A token outside the vocabulary becomes the byte `?`: it cannot come
    /// from [`Bytes::encode`].
    pub fn decode(self, tokens: &[u16]) -> Vec<u8> {
        tokens.iter().map(|&token| u8::try_from(token).unwrap_or(b'?')).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_the_round_trip() {
        let all: Vec<u8> = (0..=255).collect();
        let tokens = Bytes.encode(&all);
        assert!(tokens.iter().all(|&token| usize::from(token) < Bytes::VOCABULARY));
        assert_eq!(Bytes.decode(&tokens), all);
    }
}
