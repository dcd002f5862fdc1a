//! Listings with aligned columns under a header.

use std::fmt;

use crate::screen::harmless;

/// Columns two spaces apart; the last one is as long as it likes.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|name| (*name).to_owned()).collect()] }
    }

    /// Columns without names.
    pub(crate) fn without_head() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a row; an empty cell shows as `-`.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        let cell = |cell: String| if cell.is_empty() { "-".to_owned() } else { one_line(&cell) };
        self.rows.push(cells.into_iter().map(cell).collect());
    }
}

/// What others wrote into a cell cannot end its line.
fn one_line(text: &str) -> String {
    harmless(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let mut table = Table::new(&["NAME", "STATE", "MODELS"]);
        table.row(["büro".to_owned(), "alive".to_owned(), String::new()]);
        table.row(["a-long-name".to_owned(), String::new(), "x, y".to_owned()]);
        assert_eq!(
            table.to_string(),
            "NAME         STATE  MODELS\nbüro         alive  -\na-long-name  -      x, y\n"
        );
    }

    #[test]
    fn a_cell_stays_on_its_line() {
        let mut table = Table::without_head();
        table.row(["ok".to_owned(), "first\nsecond\x1b[2J".to_owned()]);
        assert_eq!(table.to_string(), "ok  first second?[2J\n");
    }
}
