//! One line of QEMU's machine protocol.

use serde::Deserialize;
use serde_json::Value;

/// QEMU's own words about a command.
#[derive(Debug, Deserialize)]
pub(super) struct Refusal {
    /// What it says.
    pub desc: String,
}

/// Any line that QEMU sends after its greeting.
#[derive(Debug, Deserialize)]
pub(super) struct Line {
    /// Of the command that it answers.
    pub id: Option<u64>,
    /// Of a command that was carried out.
    #[serde(rename = "return")]
    pub value: Option<Value>,
    /// Of a command that was not.
    pub error: Option<Refusal>,
    /// Name of an event.
    pub event: Option<String>,
    /// What belongs to the event.
    #[serde(default)]
    pub data: Value,
}

impl Line {
    /// Reads one line.
    ///
    /// # Errors
    /// It is not JSON, or a field has another type.
    pub(super) fn read(text: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(text)
    }
}
