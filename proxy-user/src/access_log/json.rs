//! One JSON object a line, with the fields and the names that the log in JSON has.

use serde::ser::{SerializeMap as _, Serializer as _};

use super::line::Line;
use super::time;

pub(super) fn format(line: &Line<'_>) -> String {
    let mut text = Vec::with_capacity(512);
    let mut serializer = serde_json::Serializer::new(&mut text);
    let written = serializer.serialize_map(None).and_then(|mut object| {
        object.serialize_entry("timestamp", &time::rfc3339(line.time))?;
        object.serialize_entry("level", line.level().as_str())?;
        for (key, value) in line.fields() {
            object.serialize_entry(key, &value)?;
        }
        object.serialize_entry("target", "access")?;
        object.end()
    });
    // Text and numbers into memory: nothing can fail.
    debug_assert!(written.is_ok());
    String::from_utf8(text).unwrap_or_default()
}
