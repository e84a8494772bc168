//! "Did you mean": nearest names by edit distance.

/// Longest text compared; longer input is not a typo of anything, and the cost is quadratic.
const MAX_LEN: usize = 64;

/// Up to `most` candidates within a third of the word's length in edits, nearest first. Case is ignored.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>, most: usize) -> Vec<&'a str> {
    if word.len() > MAX_LEN {
        return Vec::new();
    }
    let word = word.to_ascii_lowercase();
    let limit = word.len().div_ceil(3);
    let mut scored: Vec<_> = candidates
        .map(|c| (edit_distance(&word, &c.to_ascii_lowercase()), c))
        .filter(|(distance, _)| *distance <= limit)
        .collect();
    scored.sort();
    scored.into_iter().take(most).map(|(_, c)| c).collect()
}

/// Levenshtein distance with a swap of neighbours counted as one edit.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, &x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &y) in b.iter().enumerate() {
            let at = |row: &[usize], k: usize| row.get(k).copied().unwrap_or(usize::MAX / 2);
            let mut best =
                (at(&row, j) + 1).min(at(&last, j + 1) + 1).min(at(&last, j) + usize::from(x != y));
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(&y) && b.get(j - 1) == Some(&x);
            if swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits_and_swaps() {
        for (a, b, distance) in
            [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("micro", "mirco", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(edit_distance(a, b), distance, "{a:?} {b:?}");
        }
    }

    #[test]
    fn nearest_comes_first_and_far_names_are_left_out() {
        let names = ["debian-12", "debian-11", "tiny"];
        assert_eq!(nearest("debain-12", names.into_iter(), 2), ["debian-12", "debian-11"]);
        assert_eq!(nearest("windows", names.into_iter(), 2), Vec::<&str>::new());
        assert_eq!(nearest(&"x".repeat(1000), names.into_iter(), 2), Vec::<&str>::new());
    }
}
