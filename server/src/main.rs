//! The program `wattle-server`.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{CommandFactory, Parser};
use sd_notify::NotifyState;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use wattle_mesh::audit::{Edit, Subject};
use wattle_program::{
    log, manual,
    owner::{become_user, other_owner},
    settings,
};
use wattle_server::{
    config::{Arguments, AuditCommand, CaCommand, Command, Config, ConfigCommand, TokenCommand},
    data_dir,
    db::{AuditActor, Db},
    fingerprint::fingerprint,
    healthcheck::healthcheck,
    http::listen::Listeners,
    postgres, router,
    routes::{
        api_tokens,
        events::{self, Filter},
    },
    secret,
    server::{Database, Server, TRY_LIMIT},
    state::app::App,
    tasks::memory,
    tls::authority,
};
use wattle_wire::{
    admin::{ApiToken, NewApiToken},
    text::{visible, visible_json},
};

/// Which log lines are written if nobody says which.
const USUAL_LOG: &str = "info,sqlx=warn";

fn main() -> ExitCode {
    memory::keep_little();
    match command(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let error = format!("{error:#}");
            let _ = writeln!(io::stderr(), "wattle-server: {}", visible(&error));
            ExitCode::FAILURE
        }
    }
}

fn command(mut arguments: Arguments) -> anyhow::Result<()> {
    let command = arguments.command.take();
    let config = || -> anyhow::Result<Config> {
        let config = arguments.config()?;
        log::start(config.log_format, config.log.as_ref(), USUAL_LOG);
        // What a command of root writes, the coordinator of a unit has to read. A private Postgres
        // that it starts is that user's, too.
        if let Some((user, group)) = other_owner(&config.data_dir)? {
            become_user(user, group)?;
        }
        Ok(config)
    };
    match command {
        None => run(serve(&config()?)),
        Some(Command::Token(command)) => run(with_database(&config()?, |db, actor| {
            token(db, actor, command)
        })),
        Some(Command::Ca(command)) => {
            let config = config()?;
            run(with_database(&config, |db, actor| {
                authority(db, actor, &config.data_dir, command)
            }))
        }
        Some(Command::Audit(command)) => run(with_database(&config()?, |db, _| audit(db, command))),
        Some(Command::Healthcheck) => run(healthcheck(&config()?)),
        Some(Command::Config(ConfigCommand::Check)) => {
            let config = config()?;
            let valid = settings::valid(&config.file)?;
            config.check()?;
            say(&valid)
        }
        Some(Command::Openapi) => print(&visible_json(router::openapi_json().trim_end())),
        Some(Command::Completions { shell }) => {
            manual::completions(Arguments::command(), shell, &mut io::stdout())
        }
        Some(Command::Manual { folder }) => manual::write(Arguments::command(), &folder),
    }
}

fn run(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    // How many steps are taken before sockets are looked at again, 61 if nothing is said: so many
    // steps of strangers come before one of somebody who has a credential.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .event_interval(8)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(work)
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    // First of all, so that a taken port is told before a database is made.
    let listeners = Listeners::bind(config)?;
    data_dir::make_data_dir(&config.data_dir)?;
    let database = Database::open(config.database_url(), &config.data_dir).await?;
    let kind = database.kind();
    let result = async {
        tokio::select! {
            answers = database.wait(tell_waiting) => answers?,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
        let mut server = Server::start(database.options(), listeners, config).await?;
        if config.given_urls.is_empty() && server.address.ip().is_unspecified() {
            tracing::warn!(address = %server.address, "join strings contain this address, and \
                agents cannot reach it: set --url (WATTLE_URL)");
        }
        if config.insecure_http {
            tracing::warn!(
                "INSECURE: serves HTTP without TLS; everybody on the way can read every \
                token"
            );
        }
        tracing::info!(
            address = %server.address,
            position = %server.app.mesh_cache.position(),
            database = kind,
            api_token = %data_dir::token_file(&config.data_dir).display(),
            "serves"
        );
        tell_supervisor(NotifyState::Ready);
        let app = server.app.clone();
        tokio::select! {
            result = server.wait() => return result,
            () = show_life(&app) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stops");
        server.stop().await
    }
    .await;
    database.close().await;
    result
}

/// Tells systemd again and again that the coordinator lives, where it asks for that.
async fn show_life(app: &App) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    // Half of the time, as the manual of `sd_watchdog_enabled` recommends.
    let mut ticks = tokio::time::interval(limit / 2);
    loop {
        ticks.tick().await;
        // Everything waits for the lock of the cache sooner or later: a coordinator that is stuck
        // does not get it.
        app.mesh_cache.read(|_| ());
        tell_supervisor(NotifyState::Watchdog);
    }
}

/// Tells systemd that the start takes longer, for as long as the database does not answer.
fn tell_waiting(pause: Duration) {
    let microseconds = u32::try_from((pause + TRY_LIMIT).as_micros()).unwrap_or(u32::MAX);
    tell_supervisor(NotifyState::Status("waits for the database"));
    tell_supervisor(NotifyState::ExtendTimeoutUsec(microseconds));
}

/// Does nothing where nobody listens.
fn tell_supervisor(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "cannot tell systemd");
    }
}

/// Does something with the database, which the coordinator may be using.
async fn with_database<W>(
    config: &Config,
    work: impl FnOnce(Db, AuditActor) -> W,
) -> anyhow::Result<()>
where
    W: Future<Output = anyhow::Result<()>>,
{
    let (options, started) = match (config.database_url(), postgres::running(&config.data_dir)) {
        (None, Some(running)) => (running, None),
        (None, None) if !postgres::exists(&config.data_dir) => bail!(
            "there is no mesh in {}: start the coordinator first, or name the place of its data \
             with --data-dir or --database-url",
            config.data_dir.display()
        ),
        (url, _) => {
            let database = Database::open(url, &config.data_dir).await?;
            (database.options(), Some(database))
        }
    };
    let actor = AuditActor::known_as("command line");
    let result =
        async { work(Db::open(options, config.database_pooler).await?, actor).await }.await;
    if let Some(database) = started {
        database.close().await;
    }
    result
}

async fn token(db: Db, actor: AuditActor, command: TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create {
            name,
            role,
            expires_in_s,
        } => {
            let token = secret::ApiCredential::fresh()?;
            let (new, wanted) = (
                &token,
                &NewApiToken {
                    name,
                    role,
                    expires_in_s,
                },
            );
            db.mutate(&actor, |mut change| async move {
                let api_token = api_tokens::queries::insert(&mut change, new, wanted).await?;
                change
                    .changed(
                        (),
                        Vec::new(),
                        "api-token.create",
                        Subject::api_token(Edit::Made(&api_token)),
                    )
                    .with_object(&api_token)
            })
            .await?;
            say(&token.reveal())
        }
        TokenCommand::List { json } => {
            let tokens =
                api_tokens::queries::list(&mut *db.begin().await?, None, usize::MAX).await?;
            if json {
                return say_json(&tokens);
            }
            tokens.iter().try_for_each(
                |ApiToken {
                     id,
                     name,
                     role,
                     created_at,
                     ..
                 }| {
                    say(&format!(
                        "{id}  {}  {}  {name}",
                        created_at.to_rfc3339(),
                        role.name()
                    ))
                },
            )
        }
        TokenCommand::Revoke { id } => {
            let revoked = db.mutate(&actor, |mut change| async move {
                match api_tokens::queries::revoke(&mut change, id).await? {
                    Some(token) => Ok(change.changed(
                        true,
                        Vec::new(),
                        "api-token.revoke",
                        Subject::api_token(Edit::Gone(&token)),
                    )),
                    None => Ok(change.unchanged(false)),
                }
            });
            anyhow::ensure!(revoked.await?.value, "there is no such api token");
            Ok(())
        }
    }
}

async fn audit(db: Db, command: AuditCommand) -> anyhow::Result<()> {
    match command {
        AuditCommand::List {
            object,
            actor,
            since,
            until,
            limit,
            json,
        } => {
            let filter = Filter {
                object,
                actor,
                since,
                until,
            };
            let listed = events::newest(&db, &filter, usize::try_from(limit)?).await?;
            if json {
                return say_json(&listed);
            }
            listed
                .iter()
                .map(events::line)
                .try_for_each(|line| say(&line))
        }
        AuditCommand::Verify { seen } => {
            let head = events::verify(&db, seen).await?;
            say(
                "the audit log is complete. Keep this end elsewhere, and pass it to the next \
                 check with --seen:",
            )?;
            say(&head.to_string())
        }
    }
}

async fn authority(
    db: Db,
    actor: AuditActor,
    data_dir: &Path,
    command: CaCommand,
) -> anyhow::Result<()> {
    match command {
        CaCommand::List { json } => {
            let authorities = authority::list(&db, data_dir).await?;
            if json {
                return say_json(&authorities);
            }
            authorities
                .iter()
                .try_for_each(|listed| say(&listed.to_string()))
        }
        CaCommand::Next => say(&fingerprint(
            authority::make_next(&db, &actor, data_dir).await?,
        )),
        CaCommand::Switch => say(&fingerprint(authority::switch(&db, data_dir).await?)),
        CaCommand::Forget { fingerprint } => {
            authority::forget(&db, &actor, data_dir, fingerprint).await
        }
    }
}

/// Prints a line, with all that a terminal would obey written out: people, gateways and the
/// database say much of it.
fn say(text: &str) -> anyhow::Result<()> {
    print(&visible(text))
}

fn say_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&visible_json(&serde_json::to_string_pretty(value)?))
}

fn print(safe: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{safe}").context("cannot write to the standard output")
}
