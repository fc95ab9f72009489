//! Output: text to stdout, words to stderr, tables and quantities for people.
//!
//! Must not panic where the reader has gone: a closed pipe ends the command quietly.

use crate::failure::Failure;
use serde_json::Value;
use std::io::{self, ErrorKind, Write};
use std::time::Duration;

/// Writes `text` to stdout.
///
/// # Errors
/// [`Failure::Closed`] where nobody reads any more.
pub fn out(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|e| match e.kind() {
        ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::Output(e),
    })
}

/// Writes a line to stderr, if anybody is there.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes one JSON document.
///
/// # Errors
/// As [`out`].
pub fn json(value: &Value) -> Result<(), Failure> {
    // A value made of maps, strings and numbers always prints.
    let text = serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string());
    out(&format!("{text}\n"))
}

/// How a column is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a header; each column is as wide as its widest cell.
#[derive(Clone, Debug)]
pub struct Table {
    align: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    #[must_use]
    pub fn new(columns: &[(&str, Align)]) -> Self {
        let header = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        Self { align: columns.iter().map(|(_, align)| *align).collect(), rows: vec![header] }
    }

    /// Adds a row; cells that are missing stay empty, superfluous ones are left out.
    pub fn row(&mut self, mut cells: Vec<String>) {
        cells.resize(self.align.len(), String::new());
        self.rows.push(cells);
    }

    /// Whether there is nothing but the header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    /// The text, a line for each row, without trailing blanks.
    #[must_use]
    pub fn text(&self) -> String {
        let width = |column: usize| self.rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.align.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, &width), align) in row.iter().zip(&widths).zip(&self.align) {
                let pad = " ".repeat(width - cell.chars().count());
                match align {
                    Align::Left => line.extend([cell, pad.as_str(), "  "]),
                    Align::Right => line.extend([pad.as_str(), cell, "  "]),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Bytes in binary units, three digits: `0 B`, `4.00 KiB`, `1.50 GiB`, `931 GiB`.
#[must_use]
pub fn bytes(n: f64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024.0 {
        return format!("{n:.0} B");
    }
    let (mut value, mut unit) = (n / 1024.0, 0);
    // 1023.6 would print as 1024.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", three_digits(value), UNITS[unit])
}

/// A time in microseconds, three digits: `0.9 us`, `45.0 us`, `1.20 ms`, `3.40 s`.
#[must_use]
pub fn micros(us: f64) -> String {
    match us {
        us if us < 999.5 => format!("{} us", three_digits(us)),
        us if us < 999_500.0 => format!("{} ms", three_digits(us / 1e3)),
        us => format!("{} s", three_digits(us / 1e6)),
    }
}

/// A rate or count, three digits and a decimal suffix: `0`, `12`, `1.50`, `950`, `1.20k`, `3.40M`.
#[must_use]
pub fn count(n: f64) -> String {
    match n {
        n if n < 999.5 && n.fract() == 0.0 => format!("{n:.0}"),
        n if n < 999.5 => three_digits(n),
        n if n < 999_500.0 => format!("{}k", three_digits(n / 1e3)),
        n if n < 999.5e6 => format!("{}M", three_digits(n / 1e6)),
        n => format!("{}G", three_digits(n / 1e9)),
    }
}

fn three_digits(n: f64) -> String {
    match n {
        0.0 => "0".to_owned(),
        n if n < 9.995 => format!("{n:.2}"),
        n if n < 99.95 => format!("{n:.1}"),
        n => format!("{n:.0}"),
    }
}

/// A span of time: `9s`, `4m 05s`, `3h 07m`, `12d 4h`.
#[must_use]
pub fn span(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h {:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d {}h", s / 86_400, s / 3600 % 24),
    }
}

/// A UUID with its dashes.
#[must_use]
pub fn uuid(bytes: &[u8; 16]) -> String {
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let mut table = Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right), ("NOTE", Align::Left)]);
        assert!(table.is_empty());
        table.row(vec!["a".into(), "1.00 GiB".into(), "x".into()]);
        table.row(vec!["Grüße".into(), "9 B".into()]);
        assert_eq!(table.text(), "NAME       SIZE  NOTE\na      1.00 GiB  x\nGrüße       9 B\n");
    }

    #[test]
    fn quantities_have_three_digits_and_the_right_unit() {
        let sizes = [(0.0, "0 B"), (1023.0, "1023 B"), (1024.0, "1.00 KiB"), (1536.0, "1.50 KiB")];
        for (n, text) in sizes {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(bytes(8.0 * f64::from(1 << 30)), "8.00 GiB");
        assert_eq!(bytes(1024.0 * 1024.0 - 1.0), "1.00 MiB");
        assert_eq!(bytes(u64::MAX as f64), "16.0 EiB");
        for (n, text) in [(0.0, "0 us"), (45.0, "45.0 us"), (999.9, "1.00 ms"), (3.4e6, "3.40 s")] {
            assert_eq!(micros(n), text);
        }
        for (n, text) in
            [(0.0, "0"), (12.0, "12"), (1.5, "1.50"), (1200.0, "1.20k"), (3.4e6, "3.40M"), (2e9, "2.00G")]
        {
            assert_eq!(count(n), text);
        }
    }

    #[test]
    fn spans_and_uuids_read_well() {
        for (s, text) in [(9, "9s"), (245, "4m 05s"), (11_220, "3h 07m"), (1_051_200, "12d 4h")] {
            assert_eq!(span(Duration::from_secs(s)), text);
        }
        assert_eq!(uuid(&[0xab; 16]), "abababab-abab-abab-abab-abababababab");
    }
}
