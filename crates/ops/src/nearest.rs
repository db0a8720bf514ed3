//! The known name that somebody may have meant.

/// The known name that is nearest to `given`, if one is near enough to be meant.
///
/// ```
/// use onesigma_ops::nearest;
/// assert_eq!(nearest("warm-up", &["steps", "warmup"]), Some("warmup"));
/// assert_eq!(nearest("colour", &["steps", "warmup"]), None);
/// ```
pub fn nearest<'a, S: AsRef<str>>(given: &str, known: &'a [S]) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace(['-', ' '], "_");
    let given = plain(given);
    let near = known.iter().map(AsRef::as_ref).map(|name| (edits(&given, &plain(name)), name));
    let (distance, name) = near.min_by_key(|(distance, _)| *distance)?;
    let limit = (given.chars().count() / 3).max(1) + 1;
    (distance <= limit).then_some(name)
}

/// Insertions, deletions, replacements and swaps of neighbours that make one text of another
/// (optimal string alignment).
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[a.len()][b.len()]
}

/// `, did you mean ..?` for a message, or the semicolon that stands there without it.
pub(crate) fn did_you_mean(near: Option<&str>) -> String {
    near.map_or_else(|| ";".to_owned(), |near| format!(", did you mean `{near}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_count_letters_and_swaps() {
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("steps", "stpes"), 1);
        assert_eq!(edits("kitten", "sitting"), 3);
    }

    #[test]
    fn the_nearest_name_is_found_or_none() {
        let known = ["steps", "steps_per_call", "seed", "warmup"];
        assert_eq!(nearest("stepz", &known), Some("steps"));
        assert_eq!(nearest("warm-up", &known), Some("warmup"));
        assert_eq!(nearest("steps-per-cal", &known), Some("steps_per_call"));
        assert_eq!(nearest("colour", &known), None);
    }
}
