//! An event in a sentence.

use serde_json::Value;
use wattle_wire::admin::{Event, FieldChange};

/// What each action did; a forced one has the same words, and says so.
const ACTIONS: [(&str, &str); 32] = [
    ("api-token.create", "made the api token {name}"),
    ("api-token.revoke", "revoked the api token {name}"),
    (
        "authority.forget",
        "ended the trust in the authority {name}",
    ),
    ("authority.trust", "began to trust the authority {name}"),
    ("join-token.create", "made a join token for site {site}"),
    (
        "join-token.refuse",
        "refused another machine that had a used join token of site {site}",
    ),
    ("join-token.revoke", "revoked a join token of site {site}"),
    ("mesh.change", "changed the settings of the mesh"),
    (
        "node.activate",
        "made node {name} the active one of site {site}",
    ),
    ("node.admit", "admitted node {name} of site {site}"),
    ("node.confirm_removal", "confirmed that node {name} is gone"),
    (
        "node.copied",
        "found the keys of node {name} of site {site} on two machines",
    ),
    (
        "node.endpoint.meet",
        "node {name} of site {site} was met at its endpoint",
    ),
    (
        "node.endpoint.try",
        "had the endpoint of node {name} of site {site} tried",
    ),
    ("node.enrol", "enrolled node {name} of site {site}"),
    (
        "node.identity.change",
        "changed the identity of node {name} of site {site}",
    ),
    (
        "node.key.announce",
        "announced the next WireGuard key of node {name} of site {site}",
    ),
    (
        "node.key.change",
        "changed the WireGuard key of node {name} of site {site}",
    ),
    (
        "node.key.withdraw",
        "withdrew the next WireGuard key of node {name} of site {site}",
    ),
    (
        "node.readmit",
        "took in node {name} of site {site} again, which the database had lost",
    ),
    ("node.rename", "renamed node {name} of site {site}"),
    (
        "node.returned",
        "found that node {name} of site {site} had been removed and is back",
    ),
    ("node.revoke", "revoked node {name} of site {site}"),
    (
        "node.rotate",
        "asked node {name} of site {site} for a new WireGuard key",
    ),
    (
        "node.tokens.renew",
        "ended all earlier tokens of node {name} of site {site}",
    ),
    ("site.change", "changed site {name}"),
    ("site.create", "created site {name}"),
    ("site.import", "imported site {name}"),
    ("site.remove", "removed site {name}"),
    ("webhook.create", "made a webhook to {name}"),
    ("webhook.delete", "deleted the webhook to {name}"),
    (
        "wg-quick.create",
        "made a wg-quick file for node {name} of site {site}",
    ),
];

/// What was done, in words: `changed site hq: subnets 10.1.0.0/24 → 10.1.0.0/24, 10.2.0.0/24`. Who
/// did it is told apart.
pub fn sentence(event: &Event) -> String {
    let (action, forced) = match event.action.strip_suffix(".forced") {
        Some(action) => (action, ", by force"),
        None => (event.action.as_str(), ""),
    };
    let words = ACTIONS.iter().find(|(known, _)| *known == action);
    let done = match words {
        // The name last: it may be free text, and nothing in it is looked for.
        Some((_, words)) => words
            .replace("{site}", event.object_site.as_deref().unwrap_or("?"))
            .replace("{name}", &event.object_name),
        None => format!("{action} {}", event.object_name),
    };
    // The name is said already.
    let is_said = |change: &&FieldChange| {
        let values = [&change.before, &change.after];
        change.field == "name"
            && values.iter().any(|value| value.is_null())
            && values
                .iter()
                .any(|value| **value == event.object_name.as_str())
    };
    let changes = event.changes.iter().filter(|change| !is_said(change));
    let changes: Vec<_> = changes.map(|change| words_of(event, change)).collect();
    match changes.is_empty() {
        true => format!("{done}{forced}"),
        false => format!("{done}{forced}: {}", changes.join("; ")),
    }
}

fn words_of(event: &Event, change: &FieldChange) -> String {
    let FieldChange {
        field,
        before,
        after,
    } = change;
    let field = field.replace('_', " ");
    let is_new = event.changes.iter().all(|change| change.before.is_null());
    let is_gone = event.changes.iter().all(|change| change.after.is_null());
    if is_new && event.before.is_none() {
        format!("{field} {}", words(after))
    } else if is_gone && event.after.is_none() {
        format!("{field} {}", words(before))
    } else {
        format!("{field} {} → {}", words(before), words(after))
    }
}

fn words(value: &Value) -> String {
    let list = |items: Vec<String>| match items.is_empty() {
        true => "none".to_owned(),
        false => items.join(", "),
    };
    match value {
        Value::Null => "none".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.is_empty() => "none".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => list(items.iter().map(words).collect()),
        Value::Object(entries) => {
            let entries = entries.iter();
            list(
                entries
                    .map(|(key, value)| format!("{key}={}", words(value)))
                    .collect(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use serde_json::json;
    use wattle_wire::key::Bytes32;

    use super::*;
    use crate::audit::difference;

    fn event(action: &str, before: Value, after: Value) -> Event {
        let digest = |value: &Value| (!value.is_null()).then(|| Bytes32::from([1; 32]));
        Event {
            number: 1,
            at: DateTime::UNIX_EPOCH,
            actor: "api-token:1".to_owned(),
            actor_name: "carol".to_owned(),
            actor_site: None,
            action: action.to_owned(),
            object: "2".to_owned(),
            object_name: "hq".to_owned(),
            object_site: Some("hq".to_owned()),
            sentence: String::new(),
            changes: difference(&before, &after),
            revision: Some(1),
            request_id: None,
            before: digest(&before),
            after: digest(&after),
            hash: Bytes32::from([0; 32]),
        }
    }

    #[test]
    fn an_event_is_a_sentence_with_what_was_and_what_is() {
        let small = json!({"name": "hq", "subnets": ["10.1.0.0/24"], "labels": {"region": "emea"}});
        let large = json!({"name": "hq", "subnets": ["10.1.0.0/24", "10.2.0.0/24"], "labels": {}});
        for (action, before, after, said) in [
            (
                "site.change",
                &small,
                &large,
                "changed site hq: labels region=emea → none; subnets 10.1.0.0/24 → 10.1.0.0/24, \
                 10.2.0.0/24",
            ),
            (
                "site.create.forced",
                &Value::Null,
                &small,
                "created site hq, by force: labels region=emea; subnets 10.1.0.0/24",
            ),
            (
                "site.remove",
                &large,
                &Value::Null,
                "removed site hq: subnets 10.1.0.0/24, 10.2.0.0/24",
            ),
            (
                "site.change",
                &json!({"endpoint": "192.0.2.1:1"}),
                &json!({"endpoint": null}),
                "changed site hq: endpoint 192.0.2.1:1 → none",
            ),
            ("node.revoke", &small, &small, "revoked node hq of site hq"),
            ("what.ever", &small, &small, "what.ever hq"),
        ] {
            let event = event(action, before.clone(), after.clone());
            assert_eq!(sentence(&event), said);
        }
        let named = Event {
            object_name: "{site}".to_owned(),
            ..event("api-token.create", Value::Null, Value::Null)
        };
        assert_eq!(sentence(&named), "made the api token {site}");
    }
}
