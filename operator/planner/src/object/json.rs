//! JSON held as its text.

use serde_json::Value;

/// A JSON value held as its text. A tree takes about ten times as much memory, and a pass over a cell holds every object of
/// it twice: as it is and as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Json(Box<str>);

impl Json {
    /// Of a text that is known to be JSON.
    #[must_use]
    pub fn from_text(text: String) -> Self {
        Json(text.into())
    }

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
        // A tree can always be written. (`Display` writes the same, token by token, and takes twice as long.)
        Json(serde_json::to_string(value).unwrap_or_default().into())
    }
}
