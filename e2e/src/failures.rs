//! What failed, out of the many lines that `cargo test` prints: said again at the end, where it is looked for.

use std::io::{self, BufRead, Write};

/// A failed test may print megabytes.
const LINES: usize = 80;
const COLUMNS: usize = 400;

/// Reads what test runners print, and keeps what they say about failures.
#[derive(Debug, Default)]
pub struct Failures {
    /// The lines that said so.
    pub lines: Vec<String>,
    /// Where the report of the suite began, while it is read.
    began: Option<usize>,
}

impl Failures {
    /// Passes lines on to `shown` as they come, and keeps those of failures.
    pub fn read(mut lines: impl BufRead, mut shown: impl Write) -> io::Result<Self> {
        let mut failures = Failures::default();
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            shown.write_all(&line)?;
            failures.line(String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
        Ok(failures)
    }

    /// A suite's report goes from "failures:" to its "test result:".
    fn line(&mut self, line: &str) {
        let ends = line.starts_with("test result:");
        if self.began.is_none() && line == "failures:" {
            self.began = Some(self.lines.len());
        }
        let Some(began) = self.began else { return };
        let said = self.lines.len() - began;
        if said < LINES || ends {
            self.lines.push(line.chars().take(COLUMNS).collect());
        } else if said == LINES {
            self.lines.push("[...]".to_owned());
        }
        if ends {
            self.began = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str) -> (Vec<String>, String) {
        let mut shown = Vec::new();
        let failures = Failures::read(output.as_bytes(), &mut shown).unwrap();
        (failures.lines, String::from_utf8(shown).unwrap())
    }

    #[test]
    fn what_failed_is_kept_and_all_is_shown() {
        let output = "test a ... ok\n\ntest result: ok. 1 passed\n\
            test b ... FAILED\n\nfailures:\n\n---- b stdout ----\nleft: 1\n\nfailures:\n    b\n\n\
            test result: FAILED. 0 passed; 1 failed\ntest c ... ok\ntest result: ok. 1 passed\n";
        let (lines, shown) = read(output);
        assert_eq!(shown, output);
        let all = lines.join("\n");
        assert!(all.starts_with("failures:\n\n---- b stdout ----\nleft: 1\n"));
        assert!(all.ends_with("    b\n\ntest result: FAILED. 0 passed; 1 failed"));
    }

    #[test]
    fn of_much_the_start_and_the_result_are_kept() {
        let noise = "x".repeat(1_000) + "\n";
        let output = format!(
            "failures:\n{}test result: FAILED\nfailures:\nmore\ntest result: FAILED\n",
            noise.repeat(1_000)
        );
        let (lines, _) = read(&output);
        assert_eq!(lines.len(), LINES + 2 + 3);
        assert!(lines.iter().all(|line| line.len() <= COLUMNS));
        assert_eq!(lines[LINES..LINES + 2], ["[...]", "test result: FAILED"]);
        assert_eq!(
            lines[LINES + 2..],
            ["failures:", "more", "test result: FAILED"]
        );
    }
}
