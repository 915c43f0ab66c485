//! What differs between two states of an object, short enough for an event.

use serde_json::{Map, Value};
use wattle_wire::admin::FieldChange;

/// The longest text of the changes of one event, in bytes.
const LONGEST: usize = 4096;
/// What stands in the place of what was cut off.
const CUT: &str = "… cut";

/// Field by field, what an object was and what it is.
///
/// `Value::Null` stands for an object that is not there. What is empty on both sides is left out. Lists and labels that are too long keep what
/// differs and say how much stays; what is still too long is cut, and says so.
pub fn difference(before: &Value, after: &Value) -> Vec<FieldChange> {
    let empty = Map::new();
    let (before, after) = (
        before.as_object().unwrap_or(&empty),
        after.as_object().unwrap_or(&empty),
    );
    let added = after.keys().filter(|field| !before.contains_key(*field));
    let changes = before.keys().chain(added).filter_map(|field| {
        let value = |object: &Map<String, Value>| object.get(field).cloned().unwrap_or_default();
        let (before, after) = (value(before), value(after));
        let is_same = before == after || is_empty(&before) && is_empty(&after);
        (!is_same).then(|| FieldChange {
            field: field.clone(),
            before,
            after,
        })
    });
    bounded(changes.collect())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn bounded(changes: Vec<FieldChange>) -> Vec<FieldChange> {
    let overhead: usize = changes
        .iter()
        .map(|change| change.field.len() + r#"{"field":"","before":,"after":},"#.len())
        .sum();
    let values = |change: &FieldChange| length(&change.before) + length(&change.after);
    if 2 + overhead + changes.iter().map(values).sum::<usize>() <= LONGEST {
        return changes;
    }
    let share = LONGEST.saturating_sub(2 + overhead) / (2 * changes.len()).max(1);
    let shortened = changes.into_iter().map(|change| {
        if length(&change.before) <= share && length(&change.after) <= share {
            return change;
        }
        let (before, after) = without_common(change.before, change.after);
        FieldChange {
            field: change.field,
            before: cut(before, share),
            after: cut(after, share),
        }
    });
    shortened.collect()
}

/// Two lists, or two sets of labels, without what both have.
fn without_common(before: Value, after: Value) -> (Value, Value) {
    match (before, after) {
        (Value::Array(before), Value::Array(after)) => {
            let rest = |of: &[Value], other: &[Value]| {
                let own = of.iter().filter(|item| !other.contains(item)).cloned();
                let own: Vec<_> = own.collect();
                let stay = of.len() - own.len();
                let word = (stay > 0).then(|| Value::from(format!("{stay} that stay")));
                Value::from_iter(own.into_iter().chain(word))
            };
            (rest(&before, &after), rest(&after, &before))
        }
        (Value::Object(before), Value::Object(after)) => {
            let rest = |of: &Map<String, Value>, other: &Map<String, Value>| {
                let own = of
                    .iter()
                    .filter(|(key, value)| other.get(*key) != Some(value));
                let mut own: Map<_, _> = own.map(|(k, v)| (k.clone(), v.clone())).collect();
                let stay = of.len() - own.len();
                if stay > 0 {
                    own.insert("…".to_owned(), format!("{stay} that stay").into());
                }
                Value::Object(own)
            };
            (rest(&before, &after), rest(&after, &before))
        }
        other => other,
    }
}

/// A value whose text has at most so many bytes.
fn cut(value: Value, most: usize) -> Value {
    if length(&value) <= most {
        return value;
    }
    match value {
        Value::String(text) => {
            let room = most.saturating_sub(length(&CUT.into()));
            let size = |letter: &char| length(&Value::from(letter.to_string())) - 2;
            let kept: String = fitting(text.chars(), room, size).into_iter().collect();
            (kept + CUT).into()
        }
        Value::Array(items) => {
            let count = items.len();
            let room = most.saturating_sub(2 + length(&more(count)));
            let kept = fitting(items, room, |item| length(item) + 1);
            let left_out = count - kept.len();
            Value::from_iter(kept.into_iter().chain([more(left_out)]))
        }
        Value::Object(entries) => {
            let count = entries.len();
            let room = most.saturating_sub(8 + length(&more(count)));
            let entry = |(key, value): &(String, Value)| {
                length(&Value::from(key.as_str())) + length(value) + 2
            };
            let mut kept: Map<_, _> = fitting(entries, room, entry).into_iter().collect();
            let left_out = count - kept.len();
            kept.insert("…".to_owned(), more(left_out));
            Value::Object(kept)
        }
        other @ (Value::Null | Value::Bool(_) | Value::Number(_)) => other,
    }
}

/// The first items that have room together.
fn fitting<T>(
    items: impl IntoIterator<Item = T>,
    room: usize,
    size: impl Fn(&T) -> usize,
) -> Vec<T> {
    let mut used = 0;
    let fits = |item: &T| {
        used += size(item);
        used <= room
    };
    items.into_iter().take_while(fits).collect()
}

fn more(count: usize) -> Value {
    format!("{CUT}: {count} more").into()
}

/// Bytes of the value's text.
fn length(value: &Value) -> usize {
    value.to_string().len()
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};
    use serde_json::json;

    use super::*;

    fn text(changes: &[FieldChange]) -> String {
        serde_json::to_string(changes).unwrap()
    }

    #[test]
    fn only_fields_that_differ_are_told_with_both_values() {
        let before = json!({"name": "hq", "subnets": ["10.1.0.0/24"], "endpoint": null});
        let after = json!({"name": "hq", "subnets": ["10.1.0.0/24", "10.2.0.0/24"],
            "endpoint": "198.51.100.1:51820"});
        let changes = |field: &str, before: Value, after: Value| FieldChange {
            field: field.to_owned(),
            before,
            after,
        };
        assert_eq!(
            difference(&before, &after),
            [
                changes("endpoint", Value::Null, after["endpoint"].clone()),
                changes(
                    "subnets",
                    before["subnets"].clone(),
                    after["subnets"].clone()
                ),
            ]
        );
        assert_eq!(difference(&before, &before), []);
        assert_eq!(
            difference(
                &Value::Null,
                &json!({"name": "hq", "labels": {}, "description": ""})
            ),
            [changes("name", Value::Null, json!("hq"))],
            "what is empty is not there"
        );
        assert_eq!(
            difference(&json!({"name": "hq"}), &Value::Null),
            [changes("name", json!("hq"), Value::Null)]
        );
    }

    #[test]
    fn of_long_lists_and_labels_what_differs_is_left_and_the_rest_is_counted() {
        let subnets: Vec<_> = (0..256).map(|each| format!("10.100.{each}.0/24")).collect();
        let labels: Map<_, _> = (0..32)
            .map(|each| (format!("key-{each}"), json!("x".repeat(200))))
            .collect();
        let before = json!({"subnets": subnets[1..], "labels": labels});
        let mut after = json!({"subnets": subnets, "labels": labels});
        after["labels"]["key-7"] = json!("y");
        let changes = difference(&before, &after);
        assert!(text(&changes).len() <= LONGEST);
        let told: Vec<_> = changes
            .iter()
            .map(|change| (&change.before, &change.after))
            .collect();
        assert_eq!(
            told,
            [
                (
                    &json!({"key-7": "x".repeat(200), "…": "31 that stay"}),
                    &json!({"key-7": "y", "…": "31 that stay"})
                ),
                (
                    &json!(["255 that stay"]),
                    &json!(["10.100.0.0/24", "255 that stay"])
                ),
            ]
        );
        let made = difference(&Value::Null, &after);
        assert!(
            text(&made).len() <= LONGEST && text(&made).contains("… cut: "),
            "{made:?}"
        );
    }

    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,2000}".prop_map(Value::from),
        ];
        leaf.prop_recursive(2, 40, 40, |inner| {
            prop_oneof![
                collection::vec(inner.clone(), 0..40).prop_map(Value::from),
                collection::btree_map(".{0,300}", inner, 0..20)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn no_event_has_changes_that_are_too_long(values in collection::vec((anything(), anything()), 0..12)) {
            let side = |pick: fn(&(Value, Value)) -> &Value| {
                let fields = values.iter().enumerate();
                Value::Object(fields.map(|(n, pair)| (format!("field_{n}"), pick(pair).clone())).collect())
            };
            let changes = difference(&side(|pair| &pair.0), &side(|pair| &pair.1));
            prop_assert!(text(&changes).len() <= LONGEST, "{}", text(&changes).len());
            for change in changes.iter().filter(|change| change.before == change.after) {
                // Two long texts may begin alike, and then both say that they were cut.
                prop_assert!(change.before.to_string().contains(CUT), "{change:?}");
            }
        }
    }
}
