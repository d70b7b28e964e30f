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

const BINARY: [(&str, u32); 6] = [
    ("Ei", 60),
    ("Pi", 50),
    ("Ti", 40),
    ("Gi", 30),
    ("Mi", 20),
    ("Ki", 10),
];
/// Suffixes of whole units, by the power of ten that they stand for.
const DECIMAL: [(&str, i32); 6] = [
    ("E", 18),
    ("P", 15),
    ("T", 12),
    ("G", 9),
    ("M", 6),
    ("k", 3),
];
const FRACTION: [(&str, i32); 4] = [("", 0), ("m", -3), ("u", -6), ("n", -9)];
/// More digits than this, before or after the point, are no real size.
const MAX_DIGITS: usize = 19;
/// The power of ten beyond which an amount is no real size. It keeps the arithmetic within 128 bits.
const MAX_EXPONENT: i32 = 18;

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
        Self::read(text).ok_or_else(|| NotAQuantity(text.to_owned()))
    }

    fn read(text: &str) -> Option<Self> {
        let unsigned = text.strip_prefix('+').unwrap_or(text);
        let end = unsigned
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0
            || whole.len() > MAX_DIGITS
            || fraction.len() > MAX_DIGITS
            || fraction.contains('.')
        {
            return None;
        }
        let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
        let shift = i32::try_from(fraction.len()).ok()?;
        if let Some((_, bits)) = BINARY.iter().find(|(name, _)| *name == suffix) {
            let milli = scaled(digits.checked_mul(1 << bits)?, 3 - shift)?;
            return Some(Quantity {
                milli,
                binary: true,
            });
        }
        let named = DECIMAL.iter().chain(&FRACTION);
        let exponent = match named.into_iter().find(|(name, _)| *name == suffix) {
            Some((_, exponent)) => *exponent,
            None => suffix.strip_prefix(['e', 'E'])?.parse().ok()?,
        };
        if exponent.abs() > MAX_EXPONENT {
            return None;
        }
        Some(Quantity {
            milli: scaled(digits, exponent + 3 - shift)?,
            binary: false,
        })
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

/// A number times a power of ten, rounded up.
fn scaled(number: u128, exponent: i32) -> Option<u128> {
    let power = 10_u128.checked_pow(exponent.unsigned_abs())?;
    if exponent < 0 {
        Some(number.div_ceil(power))
    } else {
        number.checked_mul(power)
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
                if units.is_multiple_of(1_u128 << bits) {
                    return write!(f, "{}{suffix}", units >> bits);
                }
            }
        }
        for (suffix, exponent) in DECIMAL {
            let unit = 10_u128.pow(exponent.unsigned_abs());
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
            ("0.0005", "1m"),
            ("500u", "1m"),
            ("1n", "1m"),
            ("1e-1", "100m"),
            ("1E-1", "100m"),
            ("2e0", "2"),
            ("+2", "2"),
            (".5", "500m"),
            ("2.", "2"),
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
            ("2048Ti", "2Pi"),
            ("1Pi", "1Pi"),
            ("1024Pi", "1Ei"),
            ("10G", "10G"),
            ("1e9", "1G"),
            ("1E9", "1G"),
            ("1E", "1E"),
            ("12e6", "12M"),
            ("1073741824", "1073741824"),
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
            ".",
            "+",
            "1..2",
            "1.2.3",
            "-1",
            "1x",
            "1mi",
            "1 Gi",
            "1ei",
            "1e",
            "1e1.5",
            "1e99",
            "999999999999999999999",
        ] {
            assert!(Quantity::bytes(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_canonical_quantity_stays_what_it_is(
            whole in 0_u64..100_000, fraction in 0_u16..1000,
            suffix in proptest::sample::select(vec!["", "n", "u", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti", "e3", "E-2"]),
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
