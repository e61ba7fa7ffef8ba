//! The JSON Schema of a file, for editors and other programs.

use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema};
use serde_json::Value;

use super::Config;

/// The schema (draft 7, which editors know).
#[must_use]
pub fn schema() -> Value {
    schema_of::<Config>().into()
}

fn schema_of<T: JsonSchema>() -> Schema {
    SchemaSettings::draft07()
        .with_transform(WithoutNull)
        .into_generator()
        .into_root_schema_for::<T>()
}

/// The keys of a table.
pub(super) fn keys<T: JsonSchema>() -> Vec<String> {
    let schema = schema_of::<T>();
    let keys = schema.get("properties").and_then(Value::as_object);
    keys.into_iter()
        .flatten()
        .map(|(key, _)| key.clone())
        .collect()
}

/// TOML has no null: what is not set is left out.
#[derive(Clone)]
struct WithoutNull;

impl Transform for WithoutNull {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        match schema.get_mut("default") {
            Some(Value::Null) => drop(schema.remove("default")),
            Some(Value::Object(defaults)) => defaults.retain(|_, value| !value.is_null()),
            _ => {}
        }
        if let Some(Value::Array(types)) = schema.get_mut("type") {
            types.retain(|name| name != "null");
            if let [only] = &types[..] {
                let only = only.clone();
                schema.insert("type".to_owned(), only);
            }
        }
        if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
            choices.retain(|choice| choice["type"] != "null");
            if choices.len() == 1
                && let Some(Value::Object(only)) = choices.pop()
            {
                schema.remove("anyOf");
                // In this draft nothing counts beside a reference.
                if only.contains_key("$ref") {
                    schema.insert("allOf".to_owned(), Value::Array(vec![only.into()]));
                } else {
                    for (key, value) in only {
                        schema.insert(key, value);
                    }
                }
            }
        }
    }
}
