//! Money: an integer number of minor units in one currency, with arithmetic that refuses to be wrong.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An ISO 4217 currency code: three upper-case letters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Currency([u8; 3]);

impl Currency {
    /// A currency from its code.
    ///
    /// # Errors
    /// When the code is not three upper-case letters.
    pub fn new(code: &str) -> Result<Self, MoneyError> {
        let bytes: [u8; 3] = code
            .as_bytes()
            .try_into()
            .map_err(|_| MoneyError::Currency(code.to_owned()))?;
        if !bytes.iter().all(u8::is_ascii_uppercase) {
            return Err(MoneyError::Currency(code.to_owned()));
        }
        Ok(Currency(bytes))
    }

    /// The code.
    #[must_use]
    pub fn code(&self) -> &str {
        // Always ASCII letters, by construction.
        std::str::from_utf8(&self.0).unwrap_or("XXX")
    }
}

impl TryFrom<String> for Currency {
    type Error = MoneyError;

    fn try_from(code: String) -> Result<Self, MoneyError> {
        Currency::new(&code)
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> Self {
        currency.code().to_owned()
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// An amount in minor units (cents of a dollar, whole yen) of a currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Money {
    /// The amount.
    pub minor: i64,
    /// The currency.
    pub currency: Currency,
}

/// Why an amount cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// Not a currency code.
    #[error("`{0}` is not a currency: use three upper-case letters of ISO 4217, as in SGD")]
    Currency(String),
    /// Amounts of two currencies were mixed.
    #[error("cannot mix {0} and {1} in one sum")]
    Mixed(Currency, Currency),
    /// The amount does not fit.
    #[error("the amount is larger than {} minor units", Money::LARGEST)]
    Overflow,
    /// A division into no parts.
    #[error("cannot divide an amount by weights that sum to zero")]
    NoWeights,
}

impl Money {
    /// The largest amount, of either sign: the largest integer that every reader of JSON reads exactly.
    pub const LARGEST: i64 = (1 << 53) - 1;

    /// Nothing of a currency.
    #[must_use]
    pub const fn zero(currency: Currency) -> Self {
        Money { minor: 0, currency }
    }

    /// The sum.
    ///
    /// # Errors
    /// When the currencies differ or the sum is larger than [`Money::LARGEST`].
    pub fn checked_add(self, other: Money) -> Result<Money, MoneyError> {
        self.same(other)?;
        self.with(self.minor.checked_add(other.minor))
    }

    /// The difference.
    ///
    /// # Errors
    /// When the currencies differ or the difference is larger than [`Money::LARGEST`].
    pub fn checked_sub(self, other: Money) -> Result<Money, MoneyError> {
        self.same(other)?;
        self.with(self.minor.checked_sub(other.minor))
    }

    /// The amount `count` times.
    ///
    /// # Errors
    /// When it is larger than [`Money::LARGEST`].
    pub fn times(self, count: u32) -> Result<Money, MoneyError> {
        self.with(self.minor.checked_mul(i64::from(count)))
    }

    /// The sum of amounts of one currency.
    ///
    /// # Errors
    /// When the currencies differ or the sum does not fit.
    pub fn sum(
        currency: Currency,
        amounts: impl IntoIterator<Item = Money>,
    ) -> Result<Money, MoneyError> {
        amounts
            .into_iter()
            .try_fold(Money::zero(currency), Money::checked_add)
    }

    /// Divides the amount in proportion to `weights`, so that the parts sum to it exactly. What rounding leaves
    /// goes to the parts with the largest remainders, the earlier first.
    ///
    /// # Errors
    /// When the weights sum to zero and the amount does not.
    pub fn prorate(self, weights: &[u64]) -> Result<Vec<Money>, MoneyError> {
        let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
        if total == 0 {
            return if self.minor == 0 {
                Ok(vec![self; weights.len()])
            } else {
                Err(MoneyError::NoWeights)
            };
        }
        let amount = u128::from(self.minor.unsigned_abs());
        let mut parts = Vec::with_capacity(weights.len());
        let mut remainders = Vec::with_capacity(weights.len());
        let mut given: u128 = 0;
        for (index, weight) in weights.iter().enumerate() {
            let product = amount
                .checked_mul(u128::from(*weight))
                .ok_or(MoneyError::Overflow)?;
            given += product / total;
            parts.push(product / total);
            remainders.push((product % total, index));
        }
        remainders.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        let left = usize::try_from(amount - given).map_err(|_| MoneyError::Overflow)?;
        for (_, index) in remainders.into_iter().take(left) {
            if let Some(part) = parts.get_mut(index) {
                *part += 1;
            }
        }
        parts
            .into_iter()
            .map(|part| {
                let magnitude = i128::try_from(part).map_err(|_| MoneyError::Overflow)?;
                let signed = if self.minor < 0 {
                    -magnitude
                } else {
                    magnitude
                };
                let minor = i64::try_from(signed).map_err(|_| MoneyError::Overflow)?;
                Ok(Money { minor, ..self })
            })
            .collect()
    }

    fn with(self, minor: Option<i64>) -> Result<Money, MoneyError> {
        minor
            .filter(|minor| minor.unsigned_abs() <= Self::LARGEST.unsigned_abs())
            .map(|minor| Money { minor, ..self })
            .ok_or(MoneyError::Overflow)
    }

    fn same(self, other: Money) -> Result<(), MoneyError> {
        if self.currency == other.currency {
            Ok(())
        } else {
            Err(MoneyError::Mixed(self.currency, other.currency))
        }
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} minor units", self.minor, self.currency)
    }
}

impl From<MoneyError> for crate::Failure {
    fn from(error: MoneyError) -> Self {
        crate::Failure::invalid(error.to_string())
    }
}
