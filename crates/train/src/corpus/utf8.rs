//! Where a text that comes in parts stops being UTF-8.

/// Looks through a text.
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    /// The start of a character that the last part was cut in.
    pending: Vec<u8>,
    /// Bytes that were found good.
    good: usize,
    /// Place of the first byte that is not.
    wrong: Option<usize>,
}

impl Utf8 {
    /// Takes the next part.
    pub fn push(&mut self, mut part: &[u8]) {
        while let (None, false, Some((&byte, rest))) =
            (self.wrong, self.pending.is_empty(), part.split_first())
        {
            self.pending.push(byte);
            part = rest;
            match str::from_utf8(&self.pending) {
                Ok(_) => {
                    self.good += self.pending.len();
                    self.pending.clear();
                }
                Err(error) if error.error_len().is_some() => self.wrong = Some(self.good),
                Err(_) => {}
            }
        }
        if self.wrong.is_some() {
            return;
        }
        match str::from_utf8(part) {
            Ok(_) => self.good += part.len(),
            Err(error) => {
                let (good, rest) = part.split_at(error.valid_up_to());
                self.good += good.len();
                match error.error_len() {
                    Some(_) => self.wrong = Some(self.good),
                    None => self.pending = rest.to_vec(),
                }
            }
        }
    }

    /// Place of the first byte that is not UTF-8, now that the text has ended.
    pub fn end(self) -> Option<usize> {
        self.wrong.or((!self.pending.is_empty()).then_some(self.good))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_that_of_the_whole_text_however_it_is_cut() {
        let text = "gr\u{fc}n \u{20ac} \u{1f600} end".as_bytes();
        let mut cases = vec![text.to_vec()];
        for at in 0..text.len() {
            // A byte of Latin-1, a character that another follows, and a text that ends in one.
            cases.push([&text[..at], b"\xfc", &text[at..]].concat());
            cases.push([&text[..at], b"\xe2\x82", &text[at..]].concat());
            cases.push(text[..at].to_vec());
        }
        for case in cases {
            let expected = str::from_utf8(&case).err().map(|error| error.valid_up_to());
            for size in 1..=case.len().max(1) {
                let mut utf8 = Utf8::default();
                case.chunks(size).for_each(|part| utf8.push(part));
                assert_eq!(utf8.end(), expected, "{case:?} by {size}");
            }
        }
    }
}
