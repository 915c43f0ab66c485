//! Files that another version of the program wrote: what this one does not know of them is kept,
//! and what it cannot read costs one record.

use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// Fields of a file that this program does not know, for the program that does. They may be secret.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnknownFields(Map<String, Value>);

impl UnknownFields {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(String, Value)> for UnknownFields {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(fields: I) -> Self {
        Self(fields.into_iter().collect())
    }
}

impl fmt::Debug for UnknownFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Takes those out of a list or a map of a file that cannot be read. Returns how many there were.
pub fn drop_unreadable<T: DeserializeOwned>(file: &mut Value, pointer: &str) -> usize {
    let is_readable = |value: &Value| T::deserialize(value).is_ok();
    match file.pointer_mut(pointer) {
        Some(Value::Array(records)) => {
            let before = records.len();
            records.retain(is_readable);
            before - records.len()
        }
        Some(Value::Object(records)) => {
            let before = records.len();
            records.retain(|_, record| is_readable(record));
            before - records.len()
        }
        Some(_) | None => 0,
    }
}
