//! Kubernetes quantities in the form in which the apiserver gives them back.
//!
//! What is sent in any other form comes back changed, and would look like drift for ever after.

use std::fmt;

/// An amount in thousandths of its unit, with the family of suffixes that it was written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantity {
    milli: u128,
    binary: bool,
}

/// Why a text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a quantity; write for example `250m` or `2` for CPU, `256Mi` or `2Gi` for memory"
)]
pub struct NotAQuantity(String);

const BINARY: [(&str, u32); 4] = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
const DECIMAL: [(&str, u32); 4] = [("T", 12), ("G", 9), ("M", 6), ("k", 3)];
/// Enough for any suffix with three decimals; more digits than this are no real size.
const MAX_DIGITS: usize = 18;

impl Quantity {
    /// Reads an amount of CPU. Amounts finer than a thousandth of a core are rounded up, as the apiserver does.
    ///
    /// # Errors
    /// When the text is not a quantity.
    pub fn cpu(text: &str) -> Result<Self, NotAQuantity> {
        Self::parse(text)
    }

    /// Reads an amount of bytes. Parts of a byte are rounded up.
    ///
    /// # Errors
    /// When the text is not a quantity.
    pub fn bytes(text: &str) -> Result<Self, NotAQuantity> {
        let Quantity { milli, binary } = Self::parse(text)?;
        Ok(Quantity {
            milli: milli.div_ceil(1000) * 1000,
            binary,
        })
    }

    fn parse(text: &str) -> Result<Self, NotAQuantity> {
        let error = || NotAQuantity(text.to_owned());
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty()
            || whole.len() > MAX_DIGITS
            || fraction.len() > MAX_DIGITS
            || fraction.contains('.')
            || (number.contains('.') && fraction.is_empty())
        {
            return Err(error());
        }
        let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| error())?;
        let scale = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| error())?);
        let (multiplier, binary) =
            if let Some((_, bits)) = BINARY.iter().find(|(s, _)| *s == suffix) {
                (1000_u128 << bits, true)
            } else if let Some((_, zeros)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
                (1000 * 10_u128.pow(*zeros), false)
            } else {
                match suffix {
                    "" => (1000, false),
                    "m" => (1, false),
                    _ => return Err(error()),
                }
            };
        let milli = digits
            .checked_mul(multiplier)
            .ok_or_else(error)?
            .div_ceil(scale);
        Ok(Quantity { milli, binary })
    }

    /// The amount in thousandths.
    #[must_use]
    pub const fn milli(self) -> u128 {
        self.milli
    }

    /// The amount in whole units.
    #[must_use]
    pub const fn units(self) -> u128 {
        self.milli.div_ceil(1000)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.milli.is_multiple_of(1000) {
            return write!(f, "{}m", self.milli);
        }
        let units = self.milli / 1000;
        if units == 0 {
            return f.write_str("0");
        }
        // A binary amount that no binary suffix divides is written without one, and is a decimal to whoever reads it.
        if self.binary {
            for (suffix, bits) in BINARY {
                if units.is_multiple_of(1 << bits) {
                    return write!(f, "{}{suffix}", units >> bits);
                }
            }
        }
        for (suffix, zeros) in DECIMAL {
            let unit = 10_u128.pow(zeros);
            if units.is_multiple_of(unit) {
                return write!(f, "{}{suffix}", units / unit);
            }
        }
        write!(f, "{units}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(text: &str) -> String {
        Quantity::cpu(text).unwrap().to_string()
    }

    fn bytes(text: &str) -> String {
        Quantity::bytes(text).unwrap().to_string()
    }

    #[test]
    fn quantities_take_the_form_that_the_apiserver_gives_back() {
        for (given, canonical) in [
            ("1000m", "1"),
            ("0.5", "500m"),
            ("0.1", "100m"),
            ("1.5", "1500m"),
            ("250m", "250m"),
            ("0.5m", "1m"),
            ("1000", "1k"),
            ("0", "0"),
            ("0m", "0"),
            ("2.000", "2"),
        ] {
            assert_eq!(cpu(given), canonical, "{given}");
        }
        for (given, canonical) in [
            ("256Mi", "256Mi"),
            ("1024Mi", "1Gi"),
            ("1536Mi", "1536Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Mi", "512Ki"),
            ("1000M", "1G"),
            ("1500M", "1500M"),
            ("128974848", "128974848"),
            ("1048576000", "1048576k"),
            ("1000", "1k"),
            ("0.5Ki", "512"),
            ("1000Ki", "1000Ki"),
            ("2048Ti", "2048Ti"),
            ("0.3", "1"),
            ("0.9765Ki", "1k"),
            ("81917.943Mi", "85897189k"),
        ] {
            assert_eq!(bytes(given), canonical, "{given}");
        }
    }

    #[test]
    fn texts_that_are_no_quantities_are_refused() {
        for text in [
            "",
            "m",
            "Mi",
            "1.",
            ".5",
            "1..2",
            "1.2.3",
            "-1",
            "1x",
            "1mi",
            "1 Gi",
            "999999999999999999999",
        ] {
            assert!(Quantity::bytes(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_canonical_quantity_stays_what_it_is(
            whole in 0_u64..100_000, fraction in 0_u16..1000,
            suffix in proptest::sample::select(vec!["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"]),
        ) {
            let text = format!("{whole}.{fraction:03}{suffix}");
            let mut forms = vec![Quantity::bytes as fn(&str) -> _];
            if suffix.len() < 2 {
                forms.push(Quantity::cpu);
            }
            for read in forms {
                let once: Quantity = read(&text).unwrap();
                let twice = read(&once.to_string()).unwrap();
                proptest::prop_assert_eq!(once.to_string(), twice.to_string());
                proptest::prop_assert_eq!(once.milli(), twice.milli());
            }
        }
    }
}
