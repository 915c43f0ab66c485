//! `wattle-agent lock`: an operator says who may be in the mesh, with a key that no coordinator
//! has.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, BufRead, IsTerminal, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use anstyle::AnsiColor;
use anyhow::{Context, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::Utc;
use hyper::Method;
use serde::Serialize;
use toml_edit::DocumentMut;
use wattle_client::operator::OperatorClient;
use wattle_mesh::agent::admission::{Candidate, Operator, RemovalCandidate};
use wattle_wire::{
    admin::{Mesh, Node, RemovedNode, Site},
    ids::MeshId,
    key::OperatorKey,
    lock::{NewAdmissions, NewRemovals},
    name::Name,
    peer::View,
    secret::Secret,
    stream::StreamMessage,
};
use zeroize::Zeroizing;

use crate::{
    config::{Settings, SignArguments},
    output, random,
};

const DAY_S: i64 = 86_400;
/// Some have no node yet.
const MOST_SITES: usize = 2 * View::MOST_PEERS;

/// `wattle-agent lock init`.
pub(crate) fn init(path: &Path) -> anyhow::Result<()> {
    let private_key = random::bytes()?;
    let operator = Operator::new(&private_key).context("the key is not usable")?;
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let mut file = file.with_context(|| {
        format!(
            "cannot make {}, which must not be there yet",
            path.display()
        )
    })?;
    file.write_all(Zeroizing::new(STANDARD.encode(*private_key) + "\n").as_bytes())?;
    file.sync_all()?;
    output::line(format!(
        "wrote the private key to {}: back it up, and keep it off the coordinators",
        path.display()
    ));
    output::line("");
    output::line(
        "To require the lock on a gateway, run `wattle-agent join --lock` with the public key \
         there, or add this to its /etc/wattle/agent.toml, where [guard] may be already:",
    );
    output::line("");
    output::line("[guard]");
    rules(&[operator.key()]).iter().for_each(output::line);
    output::line("");
    output::line("Sign the nodes first: `wattle-agent lock sign`");
    Ok(())
}

/// `wattle-agent lock sign`.
pub(crate) async fn sign(arguments: &SignArguments) -> anyhow::Result<()> {
    let operator = load(&arguments.key)?;
    let coordinator = client(arguments)?;
    let mesh: Mesh = coordinator.get("/mesh").await?;
    let (nodes, sites): (Vec<Node>, Vec<Site>) = (
        coordinator.all("/nodes", View::MOST_PEERS + 1).await?,
        coordinator.all("/sites", MOST_SITES).await?,
    );
    let ends_at = arguments
        .days
        .map(|days| Utc::now().timestamp() + i64::from(days) * DAY_S);
    let removed: Vec<RemovedNode> = coordinator
        .all("/removals", StreamMessage::MOST_REMOVED)
        .await?;
    let removals = operator.removal_candidates(mesh.id, &removed, &nodes);
    let mut admissions = Vec::new();
    for mut node in nodes {
        let site = sites
            .iter()
            .find(|site| site.id == node.site)
            .with_context(|| format!("node {} has no site", node.name))?;
        node.admission = node.admission.filter(|_| !arguments.again);
        admissions.extend(operator.candidate(mesh.id, &node, site, ends_at));
    }
    let listing = Listing {
        admissions,
        removals,
    };
    if arguments.json {
        output::json(&listing)?;
    } else {
        listing.show();
    }
    if listing.is_empty() {
        if !arguments.json {
            output::line("every node is signed already: nothing to do");
        }
        return Ok(());
    }
    if !arguments.yes {
        listing.ask_whether_to_sign()?;
    }
    listing
        .sign(&operator, mesh.id, ends_at, &coordinator)
        .await?;
    if !arguments.json {
        output::line(format!("signed {}", listing.in_words()));
    }
    Ok(())
}

/// What an operator is asked to sign.
#[derive(Debug, Serialize)]
struct Listing {
    admissions: Vec<Candidate>,
    removals: Vec<RemovalCandidate>,
}

impl Listing {
    fn is_empty(&self) -> bool {
        self.admissions.is_empty() && self.removals.is_empty()
    }

    fn show(&self) {
        self.admissions.iter().for_each(show_admission);
        self.removals.iter().for_each(show_removal);
    }

    /// How much it is: `3`, or `3 and 2 removals`.
    fn in_words(&self) -> String {
        match (self.admissions.len(), self.removals.len()) {
            (admissions, 0) => admissions.to_string(),
            (0, removals) => format!("{removals} removals"),
            (admissions, removals) => format!("{admissions} and {removals} removals"),
        }
    }

    fn ask_whether_to_sign(&self) -> anyhow::Result<()> {
        ensure!(
            io::stdin().is_terminal(),
            "cannot ask, because standard input is not a terminal: check what is shown, and pass \
             --yes if it is right"
        );
        if !self.admissions.is_empty() {
            output::line(format!(
                "The coordinator says that these {} nodes are in the mesh. Compare each identity \
                 with `wattle-agent status` on its gateway.",
                self.admissions.len()
            ));
        }
        if !self.removals.is_empty() {
            output::line(format!(
                "The coordinator says that these {} nodes are out of the mesh. Gateways with the \
                 lock remove what you sign at once: check that you know of each.",
                self.removals.len()
            ));
        }
        output::line("Sign them? [y/N]");
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        if answer.trim().eq_ignore_ascii_case("y") {
            Ok(())
        } else {
            bail!("nothing was signed")
        }
    }

    /// Signs all of it, and sends the signatures.
    async fn sign(
        &self,
        operator: &Operator,
        mesh: MeshId,
        ends_at: Option<i64>,
        coordinator: &OperatorClient,
    ) -> anyhow::Result<()> {
        let now = Utc::now().timestamp();
        let admissions = self.admissions.iter();
        let admissions: Vec<_> = admissions
            .map(|candidate| operator.sign(mesh, candidate, now, ends_at))
            .collect::<Result<_, _>>()?;
        for admissions in admissions.chunks(NewAdmissions::MOST) {
            let admissions = admissions.to_vec();
            let body = NewAdmissions { admissions };
            coordinator
                .text(Method::POST, "/admissions", Some(&body))
                .await?;
        }
        let removals = self.removals.iter();
        let removals: Vec<_> = removals
            .map(|candidate| operator.sign_removal(mesh, candidate, now))
            .collect::<Result<_, _>>()?;
        for removals in removals.chunks(NewRemovals::MOST) {
            let removals = removals.to_vec();
            let body = NewRemovals { removals };
            coordinator
                .text(Method::POST, "/removals", Some(&body))
                .await?;
        }
        Ok(())
    }
}

/// Sees to it that this host requires the lock of these operators, if there are any: by its file of
/// settings, in which all else stays as it is. The file is made if it is not there.
pub(crate) fn require(settings: &Settings, operator_keys: &[OperatorKey]) -> anyhow::Result<()> {
    let Settings { config, guard, .. } = settings;
    let has = guard.operators().unwrap_or_default();
    if operator_keys.iter().all(|key| has.contains(key)) {
        return Ok(());
    }
    let text = match fs::read_to_string(config) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read.with_context(|| format!("cannot read {}", config.display())),
    }?;
    let with_lock = add_lock(&text, operator_keys)?.with_context(|| {
        format!(
            "{} says something else of the lock below [guard]: write this there, then join again: \
             `{}`",
            config.display(),
            rules(operator_keys).join("` and `")
        )
    })?;
    write_settings(config, &with_lock)
        .with_context(|| format!("cannot write {}", config.display()))?;
    output::line(format!(
        "wrote to {}: this host accepts only peers that an operator has admitted",
        config.display()
    ));
    Ok(())
}

/// Settings that require the lock, where they say nothing of it yet; `None` where they do.
fn add_lock(settings: &str, operator_keys: &[OperatorKey]) -> anyhow::Result<Option<String>> {
    let mut document: DocumentMut = settings.parse()?;
    let guard = document.entry("guard").or_insert_with(toml_edit::table);
    let guard = guard.as_table_like_mut().context("`guard` is no table")?;
    if guard.contains_key("lock") || guard.contains_key("operator_keys") {
        return Ok(None);
    }
    let keys: toml_edit::Array = operator_keys.iter().map(OperatorKey::to_string).collect();
    guard.insert("lock", toml_edit::value("required"));
    guard.insert("operator_keys", toml_edit::value(keys));
    Ok(Some(document.to_string()))
}

/// Writes the file whole or not at all. There are no secrets in it, and the agent reads it as its
/// own user whatever the umask of this one is.
fn write_settings(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(folder)?;
    file.as_file()
        .set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// What the settings of a host say of the lock, below `[guard]`.
fn rules(operator_keys: &[OperatorKey]) -> [String; 2] {
    let keys: Vec<_> = operator_keys
        .iter()
        .map(|key| format!("\"{key}\""))
        .collect();
    [
        "lock = \"required\"".to_owned(),
        format!("operator_keys = [{}]", keys.join(", ")),
    ]
}

fn load(path: &Path) -> anyhow::Result<Operator> {
    let text = fs::read_to_string(path).map(Zeroizing::new);
    let text = text.with_context(|| {
        format!(
            "cannot read {}; `wattle-agent lock init` makes one",
            path.display()
        )
    })?;
    let bytes = STANDARD.decode(text.trim()).ok().map(Zeroizing::new);
    let private_key = bytes
        .and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok())
        .map(Zeroizing::new);
    let private_key = private_key.with_context(|| {
        format!(
            "{} is not a key file of `wattle-agent lock init`",
            path.display()
        )
    })?;
    Operator::new(&private_key).context("the key is not usable")
}

fn show_admission(candidate: &Candidate) {
    let Candidate {
        name,
        site,
        identity,
        prefixes,
        before,
    } = candidate;
    output::line(format!(
        "{} {name} of site {site}, identity {identity}",
        if before.is_some() { "changed:" } else { "new:" }
    ));
    let old = before.as_ref().map(|before| &before.prefixes);
    for prefix in prefixes {
        let is_old = old.is_some_and(|old| old.contains(prefix));
        if is_old {
            output::line(format!("    {prefix}"));
        } else {
            output::marked_line(AnsiColor::Green, format!("  + {prefix}"), "");
        }
    }
    for prefix in old
        .into_iter()
        .flatten()
        .filter(|prefix| !prefixes.contains(prefix))
    {
        output::marked_line(AnsiColor::Red, format!("  - {prefix}"), "");
    }
}

fn show_removal(candidate: &RemovalCandidate) {
    let RemovalCandidate {
        node,
        name,
        site,
        identity,
        held_by,
        ..
    } = candidate;
    let name = name
        .as_ref()
        .map_or_else(|| node.to_string(), Name::to_string);
    let site = site.as_ref();
    let site = site.map_or_else(String::new, |site| format!(" of site {site}"));
    output::line(format!("removed: {name}{site}, identity {identity}"));
    if !held_by.is_empty() {
        let gateways: Vec<_> = held_by.iter().map(Name::as_str).collect();
        output::line(format!("    held by {}", gateways.join(", ")));
    }
}

/// The client that the arguments name.
fn client(arguments: &SignArguments) -> anyhow::Result<OperatorClient> {
    let SignArguments {
        url,
        token_file,
        ca_file,
        ..
    } = arguments;
    let token = fs::read_to_string(token_file).map(Secret::new);
    let token = token.with_context(|| format!("cannot read {}", token_file.display()))?;
    let authority = ca_file
        .as_ref()
        .map(|path| fs::read(path).with_context(|| format!("cannot read {}", path.display())));
    OperatorClient::new(url, Some(token), authority.transpose()?.as_deref())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_is_private_and_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("operator.key");
        assert!(format!("{:#}", load(&path).unwrap_err()).contains("lock init"));
        init(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let (key, text) = (
            load(&path).unwrap().key(),
            fs::read_to_string(&path).unwrap(),
        );
        assert!(init(&path).is_err());
        assert_eq!(
            (
                load(&path).unwrap().key(),
                fs::read_to_string(&path).unwrap()
            ),
            (key, text)
        );
        fs::write(&path, "AAAA").unwrap();
        assert!(load(&path).is_err());
    }

    #[test]
    fn a_machine_that_joins_locked_writes_the_rules_that_the_agent_reads_and_never_over_others() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("etc/agent.toml");
        let settings = || Settings::in_folder_with(dir.path(), &config);
        let keys = [OperatorKey::from([1; 32]), OperatorKey::from([2; 32])];
        require(&settings(), &[]).unwrap();
        assert!(!config.exists());
        require(&settings(), &keys).unwrap();
        assert_eq!(settings().guard.operators(), Some(keys.into()));
        require(&settings(), &keys[..1]).unwrap();
        let error = require(&settings(), &[OperatorKey::from([3; 32])])
            .unwrap_err()
            .to_string();
        assert!(error.contains("operator_keys = [\"AwMDAwMD"), "{error}");
        assert_eq!(settings().guard.operators(), Some(keys.into()));
        // What people wrote stays, with their remarks.
        for own in [
            "# Dublin\nmetrics = \"127.0.0.1:9586\" # for us\n",
            "[guard] # by the book\nallow = [\"10.0.0.0/8\"]\n# and no more\n",
            "guard = { allow = [\"10.0.0.0/8\"] }\n",
            "guard.allow = [\"10.0.0.0/8\"]\n",
        ] {
            fs::write(&config, own).unwrap();
            let before = settings();
            require(&before, &keys).unwrap();
            let text = fs::read_to_string(&config).unwrap();
            for remark in ["# Dublin", "# for us", "# by the book", "# and no more"] {
                assert_eq!(text.contains(remark), own.contains(remark), "{text}");
            }
            assert_eq!(settings().guard.operators(), Some(keys.into()), "{text}");
            assert_eq!(settings().guard.allow, before.guard.allow, "{text}");
            assert_eq!(settings().metrics, before.metrics, "{text}");
        }
    }
}
