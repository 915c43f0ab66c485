//! The one way to change the mesh: a transaction that takes the next revision last, records what
//! changed and who did it, and tells the other coordinators.

mod actor;
pub mod audit_log;
pub mod etag;
pub mod idempotency;
pub mod node_records;
mod record;
pub mod site_records;
pub mod webhook_news;

use std::{
    ops::{Deref, DerefMut},
    sync::LazyLock,
    time::Duration,
};

use anyhow::Context;
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{
    Connection, PgConnection, PgPool, Postgres, Transaction,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use wattle_mesh::{
    audit::{Edit, Subject},
    config::directory::{NodeRecord, RecordChange},
};
use wattle_wire::{admin::Warning, ids::Position, name::Name};

use self::record::{FurtherEvent, digest};
pub use self::{
    actor::{AuditActor, ChangeOptions},
    record::ChangeRecord,
};
use crate::{
    error::{self, Error, Result},
    secret,
};

/// Without sqlx' own lock, which would outlive the transaction behind a pooler. Migrations of a later
/// version are no error: a coordinator is set back by one version, and those of one mesh are upgraded
/// one after the other. What they add is in nobody's way.
static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrations = sqlx::migrate!("../migrations");
    migrations.set_locking(false).set_ignore_missing(true);
    migrations
});

/// The channel on which coordinators tell each other of new revisions.
const CHANNEL: &str = "wattle";
/// Begins every transaction, with limits for one that hangs. Not as options of the connection,
/// which poolers refuse.
///
/// A plan is made each time: one that was kept since a table had few rows still reads all of it
/// when it has thousands.
const BEGIN: &str = "BEGIN; SET LOCAL statement_timeout = '5s'; SET LOCAL lock_timeout = '3s'; \
    SET LOCAL idle_in_transaction_session_timeout = '10s'; SET LOCAL plan_cache_mode = \
    'force_custom_plan'";
/// How often a transaction is tried that lost against another.
const TRIES: u32 = 5;
/// How long a request may wait for a connection.
const ACQUIRE: Duration = Duration::from_secs(2);

/// Connections to the database, in several pools so that a flood of requests does not hold up
/// following it or who else is let in, nor one of reports the requests.
#[derive(Clone, Debug)]
pub struct Db {
    requests: PgPool,
    credentials: PgPool,
    follow: PgPool,
    reports: PgPool,
    has_pooler: bool,
}

/// A change under way: a transaction that will take a revision.
#[derive(Debug)]
pub struct PendingChange {
    transaction: Transaction<'static, Postgres>,
    /// The tags of which the object has to have one; `None` when it has, or when none were named.
    if_match: Option<String>,
}

/// A change that is ready to be committed.
#[derive(Debug)]
pub struct ChangeOutcome<T> {
    change: PendingChange,
    value: T,
    /// `None` when nothing was to be done.
    record: Option<ChangeRecord>,
}

impl PendingChange {
    /// The object of the change is now so, as it is shown to the caller, and stays so until the
    /// transaction ends.
    ///
    /// # Errors
    ///
    /// 412 when the caller wants to change it only as it was.
    pub fn check_precondition(&mut self, object: &impl Serialize) -> Result<()> {
        match self.if_match.take() {
            Some(if_match) if !etag::matches(&if_match, object)? => {
                Err(error::changed_meanwhile().into())
            }
            _ => Ok(()),
        }
    }

    /// Something was changed: the records are now so, and this was done to that object.
    pub fn changed<T>(
        self,
        value: T,
        records: Vec<RecordChange>,
        action: &'static str,
        subject: Subject,
    ) -> ChangeOutcome<T> {
        ChangeOutcome {
            change: self,
            value,
            record: Some(ChangeRecord {
                records,
                action,
                subject,
                after: None,
                further: Vec::new(),
                actor_site: None,
                warnings: Vec::new(),
            }),
        }
    }

    /// A node was changed, and it alone.
    pub async fn changed_node<T>(
        mut self,
        value: T,
        action: &'static str,
        before: &NodeRecord,
        after: NodeRecord,
    ) -> Result<ChangeOutcome<T>> {
        let site = site_records::name(&mut self, after.site).await?;
        let (before, now) = (before, &after);
        let subject = Subject::node(&site, Edit::Changed { before, after: now });
        Ok(self.changed(value, vec![RecordChange::Node(after)], action, subject))
    }

    /// Everything is already as it should be.
    pub fn unchanged<T>(self, value: T) -> ChangeOutcome<T> {
        ChangeOutcome {
            change: self,
            value,
            record: None,
        }
    }
}

impl<T> ChangeOutcome<T> {
    /// Says what the object is now, of which there is no record. Secrets have no place in it.
    pub fn with_object(mut self, object: &impl Serialize) -> Result<Self> {
        if let Some(record) = &mut self.record {
            record.after = Some(digest(object)?);
        }
        Ok(self)
    }

    /// Says what may not be what was meant.
    pub fn with_warnings(mut self, warnings: Vec<Warning>) -> Self {
        if let Some(record) = &mut self.record {
            record.warnings = warnings;
        }
        self
    }

    /// Says what else was done in the same revision, to another object: an event of its own. `now`
    /// is `None` when that object is gone.
    pub fn and_event(
        mut self,
        action: &'static str,
        subject: Subject,
        now: Option<RecordChange>,
    ) -> Result<Self> {
        if let Some(record) = &mut self.record {
            record.further.push(FurtherEvent {
                action,
                subject,
                after: now.map(|now| digest(&[now])).transpose()?,
            });
        }
        Ok(self)
    }

    /// Says of which site the actor is.
    pub fn by_site(mut self, site: &Name) -> Self {
        if let Some(record) = &mut self.record {
            record.actor_site = Some(site.to_string());
        }
        self
    }
}

impl Deref for PendingChange {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.transaction
    }
}

impl DerefMut for PendingChange {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }
}

/// A transaction that was committed, and the position it took.
#[derive(Debug)]
pub struct Committed<T> {
    pub value: T,
    pub position: Option<Position>,
}

impl Db {
    /// Brings the schema up to date and opens the pools. `has_pooler`: connections are shared by a
    /// pooler between us and the database.
    pub async fn open(options: PgConnectOptions, has_pooler: bool) -> anyhow::Result<Self> {
        let mut options = options.application_name("wattle-server");
        if has_pooler {
            // What is prepared in one transaction is not there in the next.
            options = options.statement_cache_capacity(0);
        }
        migrate(&options).await?;
        let pool = |size: u32| {
            PgPoolOptions::new()
                .max_connections(size)
                .acquire_timeout(ACQUIRE)
                .connect_lazy_with(options.clone())
        };
        Ok(Self {
            requests: pool(12),
            credentials: pool(4),
            follow: pool(3),
            reports: pool(1),
            has_pooler,
        })
    }

    /// For what requests read and, unless it is a change of the mesh, write.
    ///
    /// Every query is part of a transaction, here and below: a query is two messages, and a pooler
    /// between us and the database promises one connection for several only within a transaction.
    ///
    /// # Errors
    ///
    /// When no connection is to be had within two seconds.
    pub async fn begin(&self) -> Result<Transaction<'static, Postgres>> {
        Ok(self.requests.begin_with(BEGIN).await?)
    }

    /// For looking up who asks: whatever is asked of the database, others are let in.
    ///
    /// # Errors
    ///
    /// When no connection is to be had within two seconds.
    pub async fn credentials(&self) -> Result<Transaction<'static, Postgres>> {
        Ok(self.credentials.begin_with(BEGIN).await?)
    }

    /// For following the database's changes.
    ///
    /// # Errors
    ///
    /// When no connection is to be had within two seconds.
    pub async fn follow(&self) -> Result<Transaction<'static, Postgres>> {
        Ok(self.follow.begin_with(BEGIN).await?)
    }

    /// As [`Db::follow`], but all that is read is of one moment.
    ///
    /// # Errors
    ///
    /// As of [`Db::follow`].
    pub async fn snapshot(&self) -> Result<Transaction<'static, Postgres>> {
        let mut transaction = self.follow().await?;
        sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .execute(&mut *transaction)
            .await?;
        Ok(transaction)
    }

    /// For writing what nodes report.
    ///
    /// # Errors
    ///
    /// When no connection is to be had within two seconds.
    pub async fn report(&self) -> Result<Transaction<'static, Postgres>> {
        Ok(self.reports.begin_with(BEGIN).await?)
    }

    /// Hears of new revisions. `None` behind a pooler: the database would tell whoever happens to
    /// have the connection.
    ///
    /// # Errors
    ///
    /// When no connection is to be had within two seconds.
    pub async fn listen(&self) -> Result<Option<PgListener>> {
        if self.has_pooler {
            return Ok(None);
        }
        let mut listener = PgListener::connect_with(&self.follow).await?;
        listener.listen(CHANNEL).await?;
        Ok(Some(listener))
    }

    /// Each pool with the number of its open connections, and of those among them that nobody uses
    /// now.
    pub fn connections(&self) -> [(&'static str, u32, usize); 4] {
        [
            ("requests", &self.requests),
            ("credentials", &self.credentials),
            ("follow", &self.follow),
            ("reports", &self.reports),
        ]
        .map(|(name, pool)| (name, pool.size(), pool.num_idle()))
    }

    /// Closes all connections.
    pub async fn close(&self) {
        let pools = [
            &self.requests,
            &self.credentials,
            &self.follow,
            &self.reports,
        ];
        for pool in pools {
            pool.close().await;
        }
    }

    /// Carries out a change in one transaction, and again should it lose against another.
    ///
    /// `work` changes rows and says what they are now; it may run several times. The revision is
    /// taken after it: the row's lock is held until the commit, so the order of revisions is that
    /// of the commits, and nobody who follows them skips one.
    ///
    /// Who sends the same under the same `Idempotency-Key` again gets the value of the first time,
    /// and nothing is done.
    pub async fn mutate<T, W>(
        &self,
        actor: &AuditActor,
        work: impl Fn(PendingChange) -> W,
    ) -> Result<Committed<T>>
    where
        T: Serialize + DeserializeOwned,
        W: Future<Output = Result<ChangeOutcome<T>>>,
    {
        let work = &work;
        with_retry(|| self.attempt(actor, work)).await
    }

    /// What [`Db::mutate`] would do: all of `work` is carried out and rolled back. `None` when
    /// nothing is to be done.
    pub async fn dry_run<T, W>(
        &self,
        actor: &AuditActor,
        work: impl Fn(PendingChange) -> W,
    ) -> Result<Option<ChangeRecord>>
    where
        W: Future<Output = Result<ChangeOutcome<T>>>,
    {
        let work = &work;
        with_retry(|| self.attempt_dry_run(actor, work)).await
    }

    async fn attempt<T, W>(
        &self,
        actor: &AuditActor,
        work: &impl Fn(PendingChange) -> W,
    ) -> Result<Committed<T>>
    where
        T: Serialize + DeserializeOwned,
        W: Future<Output = Result<ChangeOutcome<T>>>,
    {
        let mut transaction = self.begin().await?;
        let idempotency_key = actor.options.idempotency_key.as_deref();
        if let Some(idempotency_key) = idempotency_key
            && let Some(value) =
                idempotency::earlier_answer(&mut transaction, idempotency_key).await?
        {
            return Ok(Committed {
                value,
                position: None,
            });
        }
        let ChangeOutcome {
            change,
            value,
            record,
        } = execute(transaction, actor, work).await?;
        let mut transaction = change.transaction;
        if let Some(idempotency_key) = idempotency_key {
            idempotency::keep(&mut transaction, idempotency_key, &value).await?;
        }
        let position = match record {
            Some(record) => {
                audit_log::refuse_too_many(&mut transaction, actor).await?;
                record::write(&mut transaction, actor, record, CHANNEL).await?
            }
            None => None,
        };
        transaction.commit().await?;
        Ok(Committed { value, position })
    }

    async fn attempt_dry_run<T, W>(
        &self,
        actor: &AuditActor,
        work: &impl Fn(PendingChange) -> W,
    ) -> Result<Option<ChangeRecord>>
    where
        W: Future<Output = Result<ChangeOutcome<T>>>,
    {
        let outcome = execute(self.begin().await?, actor, work).await?;
        outcome.change.transaction.rollback().await?;
        Ok(outcome.record)
    }
}

/// Runs the work of a change in a transaction.
async fn execute<T, W>(
    transaction: Transaction<'static, Postgres>,
    actor: &AuditActor,
    work: &impl Fn(PendingChange) -> W,
) -> Result<ChangeOutcome<T>>
where
    W: Future<Output = Result<ChangeOutcome<T>>>,
{
    let outcome = work(PendingChange {
        transaction,
        if_match: actor.options.if_match.clone(),
    })
    .await?;
    // Of some objects nobody is shown a tag; whoever names one all the same is not to be passed
    // over.
    if outcome.change.if_match.is_some() {
        return Err(error::changed_meanwhile().into());
    }
    Ok(outcome)
}

/// Does something in a transaction, and again should it lose against another.
async fn with_retry<T, A>(attempt: impl Fn() -> A) -> Result<T>
where
    A: Future<Output = Result<T>>,
{
    let mut tries = 0;
    loop {
        tries += 1;
        match attempt().await {
            Err(error) if error.is_transient() && tries < TRIES => {
                tokio::time::sleep(jitter(tries)?).await
            }
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "a transaction failed {TRIES} times because of concurrent \
                    ones");
                return Err(Error::Unavailable(
                    "the database is too busy with concurrent changes",
                ));
            }
            result => return result,
        }
    }
}

/// Brings the schema up to date: all of it or, on an error, nothing.
async fn migrate(options: &PgConnectOptions) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect_with(options)
        .await
        .context("cannot connect to the database")?;
    let migrated = async {
        let mut transaction = connection.begin().await?;
        sqlx::raw_sql("SET LOCAL lock_timeout = '10s'")
            .execute(&mut *transaction)
            .await?;
        // Of several coordinators that start at once, one does it. The number is the word "wattle".
        sqlx::raw_sql("SELECT pg_advisory_xact_lock(x'776174746c65'::bigint)")
            .execute(&mut *transaction)
            .await?;
        MIGRATIONS.run(&mut *transaction).await?;
        transaction.commit().await?;
        anyhow::Ok(())
    };
    migrated
        .await
        .context("cannot bring the database's schema up to date")?;
    connection
        .close()
        .await
        .context("cannot connect to the database")
}

/// Some milliseconds, more with each try, and never the same for two that met.
fn jitter(tries: u32) -> Result<Duration> {
    let [random] = secret::random::<1>()?;
    Ok(Duration::from_millis(
        u64::from(tries) * 2 + u64::from(random % 32),
    ))
}
