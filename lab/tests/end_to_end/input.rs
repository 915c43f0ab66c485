//! Bad input gets a clear error and loses nothing.

use std::{path::Path, time::SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use wattle_lab::{
    Api, Gateway, Lab, patience, process,
    site::{DUBLIN, FRANKFURT},
    wait::same,
    wait_for,
};
use wattle_wire::{
    admin::{CreatedJoinToken, CreatedSite},
    join::JoinString,
    problem::{PROBLEM_JSON, ProblemDetails},
};

/// An id that nothing has.
const UNKNOWN: &str = "01890000-0000-7000-8000-000000000001";

pub(crate) fn t5_a_join_string_is_compared_with_what_the_machine_is(folder: &Path) -> Result<()> {
    let mut lab = Lab::build(folder, &[DUBLIN, FRANKFURT])?;
    let api = lab.start_coordinator()?;
    let dublin: CreatedSite = api.post("/sites", &DUBLIN.body())?;
    let frankfurt: CreatedSite = api.post("/sites", &FRANKFURT.body())?;
    let (own, other) = (
        dublin.join_token.join_string.reveal(),
        frankfurt.join_token.join_string.reveal(),
    );
    let mut foreign: JoinString = own.parse()?;
    foreign.mesh = UNKNOWN.parse()?;
    let foreign = foreign.to_string();
    lab.gateway(DUBLIN)?.join(own)?;
    // Before the agent runs, and beside it.
    for runs in [false, true] {
        if runs {
            lab.gateway_mut(DUBLIN)?.start_agent()?;
        }
        let gateway = lab.gateway(DUBLIN)?;
        let said = gateway.join(own)?;
        ensure!(
            said.contains("node dublin of site dublin already"),
            "{said}"
        );
        let another: CreatedJoinToken = api.post("/sites/dublin/join-tokens", &json!({}))?;
        gateway.join(another.join_string.reveal())?;
        refused(gateway, other, "for another site")?;
        refused(gateway, &foreign, "of another mesh")?;
    }
    api.delete("/nodes/dublin")?;
    let again: CreatedJoinToken = api.post("/sites/dublin/join-tokens", &json!({}))?;
    let again = again.join_string.reveal();
    refused(lab.gateway(DUBLIN)?, again, "was removed from the mesh")?;
    refused(lab.gateway(DUBLIN)?, own, "was removed from the mesh")?;
    lab.gateway_mut(DUBLIN)?.stop_agent()?;
    lab.gateway(DUBLIN)?
        .agent_says(&["join", "--replace", again])?;
    let said = lab.gateway(DUBLIN)?.join(own)?;
    ensure!(
        said.contains("node dublin of site dublin already"),
        "{said}"
    );
    // Nobody can say whether it still is one.
    lab.coordinator.kill()?;
    refused(
        lab.gateway(DUBLIN)?,
        own,
        "cannot tell whether it is one still",
    )
}

pub(crate) fn join_strings_that_are_spent_expired_revoked_foreign_or_mistyped_get_a_clear_error_and_lose_nothing(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &[DUBLIN, FRANKFURT])?;
    let api = lab.start_coordinator()?;
    for gateway in &mut lab.gateways {
        gateway.start_agent()?;
    }
    let dublin: CreatedSite = api.post("/sites", &DUBLIN.body())?;
    let frankfurt: CreatedSite = api.post("/sites", &FRANKFURT.body())?;
    let spent = dublin.join_token.join_string.reveal();
    let good = frankfurt.join_token.join_string.reveal();
    lab.gateway(DUBLIN)?.join(spent)?;
    let gateway = lab.gateway(FRANKFURT)?;

    refused(gateway, spent, "token")?;
    let mut mistyped = good.to_owned();
    mistyped.replace_range(20..21, if &good[20..21] == "x" { "y" } else { "x" });
    refused(gateway, &mistyped, "checksum")?;
    refused(gateway, &good[..good.len() - 1], "checksum")?;
    refused(gateway, "hello", "join string")?;

    let mut foreign: JoinString = good.parse()?;
    foreign.mesh = UNKNOWN.parse()?;
    refused(gateway, &foreign.to_string(), "mesh")?;
    let mut foreign: JoinString = good.parse()?;
    foreign.token = UNKNOWN.parse()?;
    refused(gateway, &foreign.to_string(), "token")?;
    let mut nobody: JoinString = good.parse()?;
    nobody.urls = vec!["https://198.18.0.99:8443".to_owned()];
    refused(gateway, &nobody.to_string(), "198.18.0.99")?;
    // E6: the right place with another authority than the one that is pinned, with public ones, and
    // without TLS.
    let mut mispinned: JoinString = good.parse()?;
    mispinned.pins = vec![[7; 32].into()];
    refused(gateway, &mispinned.to_string(), "not from the authority")?;
    mispinned.pins = Vec::new();
    refused(gateway, &mispinned.to_string(), "certificate")?;
    let mut in_the_clear: JoinString = good.parse()?;
    in_the_clear.urls = in_the_clear
        .urls
        .iter()
        .map(|url| url.replace("https://", "http://"))
        .collect();
    refused(gateway, &in_the_clear.to_string(), "https://")?;
    in_the_clear.pins = Vec::new();
    refused(gateway, &in_the_clear.to_string(), "cannot reach")?;

    let revoked: CreatedJoinToken = api.post("/sites/frankfurt/join-tokens", &json!({}))?;
    api.delete(&format!("/join-tokens/{}", revoked.id))?;
    refused(gateway, revoked.join_string.reveal(), "token")?;
    let expired: CreatedJoinToken = api.post(
        "/sites/frankfurt/join-tokens",
        &json!({ "expires_in_s": 1 }),
    )?;
    wait_for("the token expires", patience(5.0), || {
        if SystemTime::now() > SystemTime::from(expired.expires_at) {
            Ok(())
        } else {
            bail!("it expires at {}", expired.expires_at)
        }
    })?;
    refused(gateway, expired.join_string.reveal(), "token")?;

    // Nothing was lost by all that.
    gateway.join(good)?;
    wait_for("both LANs ping", patience(5.0), || lab.ping_all())
}

pub(crate) fn a_bad_request_gets_a_problem_that_says_why_and_changes_nothing(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &[])?;
    let api = lab.start_coordinator()?;
    api.post::<CreatedSite>("/sites", &DUBLIN.body())?;
    let before: Value = api.get("/sites")?;
    let with = |field: &str, value: Value| {
        let mut body = FRANKFURT.body();
        body[field] = value;
        body.to_string()
    };

    // Each body of `POST /sites` with the status and the field that the answer has to name.
    let bodies = [
        ("".to_owned(), 422, Some("name")),
        ("{".to_owned(), 400, None),
        ("[]".to_owned(), 422, None),
        ("{}".to_owned(), 422, Some("name")),
        (with("name", json!("")), 422, Some("name")),
        (with("name", json!("Frankfurt")), 422, Some("name")),
        (with("name", json!("a b")), 422, Some("name")),
        (with("name", json!("-a")), 422, Some("name")),
        (with("name", json!("x".repeat(64))), 422, Some("name")),
        (with("name", json!(7)), 422, Some("name")),
        (with("name", json!("dublin")), 409, Some("name")),
        (
            with("description", json!("x".repeat(257))),
            422,
            Some("description"),
        ),
        (
            with("description", json!("a\u{0}b")),
            422,
            Some("description"),
        ),
        (
            with("labels", json!({ "Bad Key": "x" })),
            422,
            Some("labels"),
        ),
        (
            with("endpoint", json!("198.51.100.20:0")),
            422,
            Some("endpoint"),
        ),
        (
            with("endpoint", json!("198.51.100.20")),
            422,
            Some("endpoint"),
        ),
        (
            with("endpoint", json!("gw.example.com:51820")),
            422,
            Some("endpoint"),
        ),
        (
            with("endpoint", json!("127.0.0.1:51820")),
            422,
            Some("endpoint"),
        ),
        (
            with("endpoint", json!("198.51.100.20:99999")),
            422,
            Some("endpoint"),
        ),
        (with("subnets", json!("10.20.0.0/24")), 422, Some("subnets")),
        (
            with("subnets", json!(["10.20.0.1/24"])),
            422,
            Some("subnets[0]"),
        ),
        (
            with("subnets", json!(["0.0.0.0/0"])),
            422,
            Some("subnets[0]"),
        ),
        (
            with("subnets", json!(["10.20.0.0/33"])),
            422,
            Some("subnets[0]"),
        ),
        (
            with("subnets", json!(["127.0.0.0/8"])),
            422,
            Some("subnets[0]"),
        ),
        (
            with("subnets", json!(["10.20.0.0/24", "10.20.0.128/25"])),
            422,
            Some("subnets[1]"),
        ),
        (
            with("subnets", json!(["10.20.0.0/24", "10.10.0.0/16"])),
            409,
            Some("subnets[1]"),
        ),
        (
            with("subnets", json!(["10.99.7.0/24"])),
            409,
            Some("subnets[0]"),
        ),
        (with("colour", json!("red")), 422, Some("colour")),
        (
            format!("{{\"description\":\"{}\"}}", "x".repeat(4 << 20)),
            413,
            None,
        ),
    ];
    let mut wrong = Vec::new();
    for (body, status, field) in bodies {
        let short: String = body.chars().take(120).collect();
        if let Err(error) = problem(&api, ("POST", "/sites", Some(&body)), status, field) {
            wrong.push(format!("{short}: {error:#}"));
        }
    }

    let stranger = Api {
        token: "wattle_no".to_owned(),
        ..api.clone()
    };
    let requests = [
        (&stranger, "GET", "/sites", 401),
        (&stranger, "GET", "/nodes", 401),
        (&api, "PUT", "/sites", 405),
        (&api, "GET", "/sites/nowhere", 404),
        (&api, "DELETE", "/sites/nowhere", 404),
        (&api, "GET", "/nodes/nobody", 404),
        (&api, "GET", "/no/such/path", 404),
    ];
    for (api, method, path, status) in requests {
        if let Err(error) = problem(api, (method, path, None), status, None) {
            wrong.push(format!("{method} {path}: {error:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    same(&api.get::<Value>("/sites")?, &before)
}

pub(crate) fn c5_c6_whoever_guesses_tokens_is_slowed_down_and_nobody_else_is(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &[DUBLIN, FRANKFURT])?;
    let api = lab.start_coordinator()?;
    let dublin: CreatedSite = api.post("/sites", &DUBLIN.body())?;
    let frankfurt: CreatedSite = api.post("/sites", &FRANKFURT.body())?;
    let attacker = &lab.gateway(DUBLIN)?.host;
    let curl = |arguments: &[&str]| {
        let mut curl = attacker.command("curl");
        curl.env("CURL_CA_BUNDLE", &api.ca)
            .args([
                "--silent",
                "--output",
                "/dev/null",
                "--write-out",
                "%{http_code} ",
            ])
            .args(arguments);
        process::run(curl, None)
    };
    let guess = json!({ "token": UNKNOWN, "secret": "x" }).to_string();
    let statuses = curl(&[
        "--json",
        &guess,
        &format!("{}/agent/enrol/start?[1-40]", api.url),
    ])?;
    let count = |status: &str| {
        statuses
            .split_whitespace()
            .filter(|found| *found == status)
            .count()
    };
    ensure!(
        count("401") >= 20 && count("429") > 5 && count("401") + count("429") == 40,
        "{statuses}"
    );

    // Whoever is at that address and has shown a good token before goes on, and others never
    // notice.
    let status = curl(&[
        "--header",
        &format!("Authorization: Bearer {}", api.token),
        &format!("{}/sites", api.url),
    ])?;
    same(&status.trim(), &"200")?;
    lab.gateway(FRANKFURT)?
        .join(frankfurt.join_token.join_string.reveal())?;
    // When the guessing ends, that address is as good as any other.
    wait_for("a gateway at that address joins", patience(30.0), || {
        lab.gateway(DUBLIN)?
            .join(dublin.join_token.join_string.reveal())
    })?;
    Ok(())
}

/// A request that has to be answered with a problem.
fn problem(
    api: &Api,
    (method, path, body): (&str, &str, Option<&str>),
    status: u16,
    field: Option<&str>,
) -> Result<()> {
    let answer = api.request(method, path, body)?;
    ensure!(
        answer.status == status,
        "status {} where {status} was expected: {}",
        answer.status,
        answer.body
    );
    ensure!(
        answer.content_type.starts_with(PROBLEM_JSON),
        "the type is {}",
        answer.content_type
    );
    let problem: ProblemDetails =
        serde_json::from_str(&answer.body).with_context(|| answer.body.clone())?;
    same(&problem.status, &status)?;
    ensure!(
        !problem.code.is_empty()
            && problem
                .code
                .chars()
                .all(|c| c.is_ascii_lowercase() || c == '_'),
        "the code is {:?}",
        problem.code
    );
    ensure!(
        field.is_none()
            || problem
                .field
                .as_deref()
                .is_some_and(|found| found.starts_with(field.unwrap_or_default())),
        "the field is {:?}, expected {field:?}: {}",
        problem.field,
        answer.body
    );
    ensure!(
        status != 409 || problem.holder.is_some(),
        "it does not say who holds it: {}",
        answer.body
    );
    Ok(())
}

/// Joining with this has to fail, with a word in the error that tells what is wrong, and without a
/// trace of a panic.
fn refused(gateway: &Gateway, join_string: &str, word: &str) -> Result<()> {
    let output = gateway.try_join(join_string)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "{join_string} was accepted");
    ensure!(
        said.contains(word) && !said.contains("panicked"),
        "the error does not say {word:?}: {said}"
    );
    let secret = join_string
        .parse::<JoinString>()
        .ok()
        .map(|join| join.secret.reveal().to_owned());
    ensure!(
        secret.is_none_or(|secret| !said.contains(&secret)),
        "the error shows the secret"
    );
    Ok(())
}
