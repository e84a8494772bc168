//! Tables on standard output.

use kiln_controlplane::printable;

/// Rows of text in aligned columns. Text of any origin: it is made printable here.
#[derive(Debug, Clone)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new<const N: usize>(headings: [&str; N]) -> Self {
        Table { rows: vec![headings.map(str::to_owned).to_vec()] }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// The lines, each with its end.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// `3 minutes ago` and the like; `then` and `now` in Unix seconds.
pub fn ago(then: u64, now: u64) -> String {
    let seconds = now.saturating_sub(then);
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86400 => (seconds / 3600, "hour"),
        _ => (seconds / 86400, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural} ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_have_no_tail() {
        let mut table = Table::new(["ID", "NAME"]);
        table.row(["i-1".into(), "é\x1b".into()]);
        table.row(["i-12345".into(), String::new()]);
        assert_eq!(table.render(), "ID       NAME\ni-1      é?\ni-12345\n");
    }

    #[test]
    fn ages_use_the_largest_unit() {
        for (seconds, text) in
            [(0, "0 seconds ago"), (1, "1 second ago"), (120, "2 minutes ago"), (90000, "1 day ago")]
        {
            assert_eq!(ago(1000, 1000 + seconds), text);
        }
        assert_eq!(ago(10, 0), "0 seconds ago", "a clock that was set back");
    }
}
