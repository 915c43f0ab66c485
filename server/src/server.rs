//! A coordinator from its start to its end.

use std::{collections::BTreeSet, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    bootstrap,
    config::Config,
    db::{Db, idempotency},
    error::Result,
    http::{
        auth,
        listen::{self, Listeners},
    },
    postgres::Postgres,
    router,
    state::{
        app::{App, Parts, Settings},
        auth_limiter::AuthLimiter,
        coordinators::{Coordinators, HostResolver, Resolver},
        credentials::Verified,
        link_tracker::LinkTracker,
        mesh_cache::{self, MeshCache},
        metrics::Metrics,
        reports::Reports,
        shares::Shares,
        streams::Streams,
    },
    tasks::{
        coordinator_addresses, credentials, endpoint_check, history, link_tracker, mailbox, memory,
        webhook_outbox,
    },
    tls::certificate::Certificate,
};

/// How often what nodes said is dropped that do not take part any more.
const SWEEP: Duration = Duration::from_secs(60);

/// How long one attempt to reach the database may take.
pub const TRY_LIMIT: Duration = Duration::from_secs(5);
/// The first pause between two attempts, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// A coordinator that serves.
#[derive(Debug)]
pub struct Server {
    /// Where agents reach it.
    pub address: SocketAddr,
    pub app: App,
    stop: CancellationToken,
    serving: JoinSet<anyhow::Result<()>>,
    following: JoinHandle<()>,
}

impl Server {
    /// Opens the database and serves on the listeners.
    pub async fn start(
        options: PgConnectOptions,
        listeners: impl Into<Listeners>,
        config: &Config,
    ) -> anyhow::Result<Self> {
        Self::start_with(options, listeners, config, Arc::new(HostResolver)).await
    }

    /// As [`Server::start`], with another resolver for the hosts of --url.
    pub async fn start_with(
        options: PgConnectOptions,
        listeners: impl Into<Listeners>,
        config: &Config,
        resolver: Arc<dyn Resolver>,
    ) -> anyhow::Result<Self> {
        let listeners = listeners.into().each();
        let addresses = listeners
            .iter()
            .map(|(listener, _)| listener.local_addr().context("a listener has no address"));
        let addresses: Vec<_> = addresses.collect::<anyhow::Result<_>>()?;
        let db = Db::open(options, config.database_pooler).await?;
        let urls = config.urls(&addresses)?;
        let coordinators = Coordinators::new(&urls, resolver);
        coordinators.resolve().await;
        let mesh = bootstrap::ensure_mesh(
            &db,
            &config.data_dir,
            config.tunnel_prefix.into(),
            &coordinators.own(),
        )
        .await?;
        coordinators.tell(&db).await?;
        let mesh_cache = MeshCache::load(&db).await?;
        let certificate = match config.insecure_http {
            true => None,
            false => Some(Certificate::open(&db, config, &urls, &addresses[1..]).await?),
        };
        let known = auth::known_tokens(&db).await?;
        let stop = CancellationToken::new();
        let app = App::new(Parts {
            db,
            mesh_cache,
            streams: Streams::default(),
            reports: Reports::default(),
            link_tracker: LinkTracker::default(),
            metrics: Metrics::new()?,
            verified: Verified::default(),
            known,
            shares: Shares::default(),
            auth_limiter: AuthLimiter::default(),
            settings: Settings {
                mesh: mesh.id,
                challenge_secret: mesh.challenge_secret,
                urls,
                packages: config.packages.clone(),
                webhook_allow: config.webhook_allow.clone(),
            },
            coordinators,
            certificate,
            stop: stop.clone(),
        });
        let following = tokio::spawn(follow(app.clone()));
        let tls = app
            .certificate
            .as_ref()
            .map(Certificate::server_config)
            .transpose()?;
        let (mut serving, shares) = (JoinSet::new(), listeners.len());
        for (listener, audiences) in listeners {
            serving.spawn(listen::serve(
                listener,
                tls.clone(),
                router::router(app.clone(), audiences),
                shares,
                stop.clone(),
            ));
        }
        Ok(Self {
            address: addresses[0],
            app,
            stop,
            serving,
            following,
        })
    }

    /// Waits until somebody stops it, or serving fails.
    pub async fn wait(&mut self) -> anyhow::Result<()> {
        self.serving
            .join_next()
            .await
            .context("nothing is served")?
            .context("the server failed")?
    }

    /// Ends all streams, lets requests finish that are under way, and closes the database.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        let mut result = Ok(());
        while let Some(served) = self.serving.join_next().await {
            result = result.and(served.context("the server failed").flatten());
        }
        let _ = self.following.await;
        self.app.db.close().await;
        result
    }
}

async fn follow(app: App) {
    let sweep = async {
        let mut ticks = interval(SWEEP);
        loop {
            ticks.tick().await;
            // Not asked of the cache one by one: whoever reads the cache may wait for the reports
            // meanwhile.
            let nodes: BTreeSet<_> = app
                .mesh_cache
                .read(|feed| feed.directory().nodes.keys().copied().collect());
            app.reports.retain(|node| nodes.contains(&node));
            app.verified.retain(|node| nodes.contains(&node));
            app.shares.retain(|node| nodes.contains(&node));
            if let Err(error) = forget_old(&app.db).await {
                tracing::debug!(%error, "cannot delete what is old in the database");
            }
        }
    };
    let certificate = async {
        match &app.certificate {
            Some(certificate) => certificate.follow(&app.db, &app.stop).await,
            None => app.stop.cancelled().await,
        }
    };
    let (settled, history) = mpsc::channel(1);
    // A look at the links of a thousand nodes takes a while; what follows the mesh does not wait.
    let tracked = app.clone();
    let tracking = tokio::spawn(async move { link_tracker::follow(&tracked, settled).await });
    let tracking = AbortOnDropHandle::new(tracking);
    tokio::select! {
        () = app.mesh_cache.follow(&app.db, &app.stop) => {}
        () = app.reports.write_on(&app.db) => {}
        () = app.metrics.follow(&app.mesh_cache, &app.stop) => {}
        () = sweep => {}
        () = certificate => {}
        () = credentials::follow(&app) => {}
        () = mailbox::follow(&app) => {}
        () = memory::give_back() => {}
        _ = tracking => {}
        () = history::follow(&app, history) => {}
        () = endpoint_check::follow(&app) => {}
        () = coordinator_addresses::follow(&app) => {}
        () = webhook_outbox::follow(&app) => {}
    }
    if let Err(error) = app.reports.write(&app.db).await {
        tracing::debug!(%error, "the last reports of nodes were not written");
    }
}

/// Deletes what is old: answers to idempotency keys, and revisions.
pub async fn forget_old(db: &Db) -> Result<()> {
    let mut transaction = db.follow().await?;
    idempotency::queries::forget_old(&mut transaction).await?;
    mesh_cache::queries::forget_old(&mut transaction).await?;
    Ok(transaction.commit().await?)
}

/// The database of a coordinator: the one it was told of, or a private one.
#[derive(Debug)]
pub enum Database {
    Given(Box<PgConnectOptions>),
    Private(Postgres),
}

impl Database {
    pub async fn open(database_url: Option<&str>, data_dir: &Path) -> anyhow::Result<Self> {
        let Some(url) = database_url else {
            let data_dir = data_dir.to_owned();
            let postgres = tokio::task::spawn_blocking(move || Postgres::start(&data_dir))
                .await
                .context("cannot start Postgres")??;
            return Ok(Self::Private(postgres));
        };
        // The error repeats nothing of the URL, which holds a password.
        let options = url.parse().map_err(|_| {
            anyhow::anyhow!(
                "the database URL is not valid: write it as \
                postgres://user:password@host:port/database"
            )
        })?;
        Ok(Self::Given(Box::new(options)))
    }

    pub fn options(&self) -> PgConnectOptions {
        match self {
            Self::Given(options) => (**options).clone(),
            Self::Private(postgres) => postgres.options(),
        }
    }

    /// Waits until a database that others run answers. Tries again ever more rarely, and says so;
    /// `waits` is told each pause before it begins.
    ///
    /// # Errors
    ///
    /// When it answers that it will not have the coordinator: no such user, password or database.
    pub async fn wait(&self, waits: impl Fn(Duration)) -> anyhow::Result<()> {
        let Self::Given(options) = self else {
            return Ok(());
        };
        let mut pause = FIRST_PAUSE;
        loop {
            let connecting = timeout(TRY_LIMIT, PgConnection::connect_with(options));
            let reason = match connecting.await {
                Ok(Ok(connection)) => {
                    let _ = connection.close().await;
                    return Ok(());
                }
                Ok(Err(error)) if is_lasting(&error) => {
                    return Err(error).context("the database refuses the coordinator");
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} s", TRY_LIMIT.as_secs()),
            };
            let at = format!("{}:{}", options.get_host(), options.get_port());
            tracing::warn!(
                "the database at {at} is not there yet, tries again in {} s: {reason}",
                pause.as_secs()
            );
            waits(pause);
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(2 * pause);
        }
    }

    /// What kind it is, for people to read.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Given(_) => "given",
            Self::Private(_) => "private",
        }
    }

    /// Stops a private one.
    pub async fn close(self) {
        if let Self::Private(postgres) = self {
            let _ = tokio::task::spawn_blocking(move || postgres.stop()).await;
        }
    }
}

/// Whether a database that says this will say it again, whatever the time: all but that it starts
/// or stops (`57P03`, `57P01`), is full (`53300`), or cannot be reached through a pooler (`08…`).
/// Codes: <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn is_lasting(error: &sqlx::Error) -> bool {
    match error.as_database_error().and_then(|error| error.code()) {
        Some(code) => {
            !(code.starts_with("57P") || code.starts_with("53") || code.starts_with("08"))
        }
        None => matches!(error, sqlx::Error::Configuration(_)),
    }
}
