//! The text that the model learns: sums in words, such as `seven plus six is thirteen.`

/// What tokens stand for.
const ALPHABET: &[u8] = b" .abcdefghijklmnopqrstuvwxyz";
/// Number of token ids: the alphabet and some that never occur.
pub const VOCABULARY: usize = 32;

const UNITS: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];

/// The token of a letter; other characters are spaces.
pub fn token(letter: u8) -> u32 {
    ALPHABET.iter().position(|&known| known == letter).unwrap_or(0) as u32
}

/// The letter of a token.
pub fn letter(token: usize) -> char {
    ALPHABET.get(token).map_or('?', |&letter| char::from(letter))
}

/// An endless text that depends on its number only.
fn tokens(number: u32) -> impl Iterator<Item = u32> {
    let mut state = number.wrapping_mul(0x9e37_79b9) | 1;
    std::iter::repeat_with(move || {
        let mut below = |n: u32| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) % n
        };
        let (a, b) = (below(10) as usize, below(10) as usize);
        format!("{} plus {} is {}. ", UNITS[a], UNITS[b], UNITS[a + b])
    })
    .flat_map(|sum| sum.bytes().map(token).collect::<Vec<u32>>())
}

/// Tokens and the tokens that follow each, `[batch, seq]`, for a step.
pub fn batch(step: u32, batch: usize, seq: usize) -> [Vec<u32>; 2] {
    let mut both = [Vec::new(), Vec::new()];
    for row in 0..batch as u32 {
        let own: Vec<u32> = tokens(step * batch as u32 + row).take(seq + 1).collect();
        both[0].extend(&own[..seq]);
        both[1].extend(&own[1..]);
    }
    both
}
