//! JSON held as its text.

use serde_json::Value;

/// A JSON value held as its text. A tree takes about ten times as much memory, and a pass over a cell holds every object of
/// it twice: as it is and as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Json(Box<str>);

impl Json {
    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The value as a tree.
    #[must_use]
    pub fn value(&self) -> Value {
        // What was written as JSON can be read as JSON.
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

impl From<&Value> for Json {
    fn from(value: &Value) -> Self {
        Json(value.to_string().into())
    }
}
