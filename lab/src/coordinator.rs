//! The coordinator of a lab, on a host of its own.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    api::Api,
    binaries::{Binaries, repository},
    enter,
    host::Host,
    process::{self, Daemon},
    wait::{patience, wait_for},
};

/// Its address on the underlay.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// Where it answers.
pub const PORT: u16 = 8443;
/// Its data; `/run` is the host's own.
const DATA_DIR: &str = "/run/wattle-server";

/// The coordinator and its host.
#[derive(Debug)]
pub struct Coordinator {
    pub host: Host,
    binaries: Binaries,
    log: PathBuf,
    server: Option<Daemon>,
    /// Further coordinators of the mesh, by their ports.
    others: BTreeMap<u16, Daemon>,
    /// What join strings name, with commas.
    urls: String,
    /// What people call it by.
    url: String,
}

impl Coordinator {
    pub(crate) fn start(binaries: Binaries, log: PathBuf) -> Result<Self> {
        Ok(Self {
            host: Host::start("coordinator")?,
            binaries,
            log,
            server: None,
            others: BTreeMap::new(),
            urls: url(PORT),
            url: url(PORT),
        })
    }

    /// `wattle-server` with its own Postgres, in the background.
    pub fn start_server(&mut self) -> Result<()> {
        let mut command = self.serve(DATA_DIR, PORT)?;
        command.env_remove("DATABASE_URL");
        self.server = Some(Daemon::start(command, &self.log)?);
        Ok(())
    }

    /// Lets join strings name coordinators on these ports, from the next start of a server on.
    pub fn announce(&mut self, ports: &[u16]) {
        self.urls = ports
            .iter()
            .map(|port| url(*port))
            .collect::<Vec<_>>()
            .join(",");
    }

    /// Lets join strings and people name it by this host name, from the next start on.
    pub fn announce_as(&mut self, host: &str) {
        self.url = format!("https://{host}:{PORT}");
        self.urls.clone_from(&self.url);
    }

    /// A further coordinator, on the Postgres of the first one, which ends with that. Gives its
    /// interface once it is ready.
    pub fn start_another(&mut self, port: u16) -> Result<Api> {
        let data_dir = format!("{DATA_DIR}-{port}");
        self.host.run(&format!(
            "install -D -m 600 {DATA_DIR}/ca.pem {data_dir}/ca.pem"
        ))?;
        let mut command = self.serve(&data_dir, port)?;
        command.env(
            "DATABASE_URL",
            format!("postgres:///postgres?host={DATA_DIR}/postgres/run&user=wattle"),
        );
        let mut another = Daemon::start(
            command,
            &self.log.with_file_name(format!("coordinator-{port}.log")),
        )?;
        let api = Api {
            url: url(port),
            ..self.api()?
        };
        wait_until_ready(&mut another, &api, || Ok(()))?;
        self.others.insert(port, another);
        Ok(api)
    }

    /// Ends a further coordinator with `kill -9`.
    pub fn kill_another(&mut self, port: u16) -> Result<()> {
        self.others
            .remove(&port)
            .context("no coordinator runs there")?
            .kill()
    }

    fn serve(&self, data_dir: &str, port: u16) -> Result<Command> {
        let mut command = self.as_its_user()?;
        command.args([
            self.binaries.server(),
            "--config",
            "/dev/null",
            "--data-dir",
            data_dir,
            "--listen",
            &format!("{ADDRESS}:{port}"),
        ]);
        command
            .args(["--url", &self.urls])
            .env("RUST_BACKTRACE", "1");
        Ok(command)
    }

    /// Waits until it answers that it is ready.
    pub fn wait_ready(&mut self) -> Result<()> {
        let (host, ca) = (&self.host, self.log.with_file_name("ca.crt"));
        let server = self.server.as_mut().context("no coordinator runs")?;
        let anonymous = Api {
            url: self.url.clone(),
            token: String::new(),
            ca: ca.clone(),
        };
        wait_until_ready(server, &anonymous, || {
            // It is made before the server listens, and in a folder that is nobody else's.
            fs::write(&ca, host.read(&format!("{DATA_DIR}/ca.crt"))?).map_err(Into::into)
        })
    }

    /// The interface, with the token of the first start.
    pub fn api(&self) -> Result<Api> {
        let token = self
            .host
            .read(&format!("{DATA_DIR}/api-token"))
            .context("reading the api token of the first start")?;
        Ok(Api {
            url: self.url.clone(),
            token: token.trim().to_owned(),
            ca: self.log.with_file_name("ca.crt"),
        })
    }

    /// What its database says to statements of SQL, as a thief of the coordinator could ask it: one
    /// line for each row.
    pub fn sql(&self, statements: &str) -> Result<String> {
        self.host.run_with(
            &format!("psql {} -v ON_ERROR_STOP=1 -qAt -f -", self.database()),
            statements,
        )
    }

    /// All that its database holds, as a thief would carry it away.
    pub fn dump(&self) -> Result<String> {
        self.host.run(&format!("pg_dump {}", self.database()))
    }

    /// Keeps a copy of the database as it is now. The server must not run.
    pub fn back_up(&self) -> Result<()> {
        let copy = format!("cp -a {DATA_DIR}/postgres {DATA_DIR}/postgres-backup");
        self.host.run(&copy).map(drop)
    }

    /// Puts the copy in the place of the database. The server must not run.
    pub fn restore_backup(&self) -> Result<()> {
        self.host.run(&format!("rm -r {DATA_DIR}/postgres"))?;
        let put = format!("cp -a {DATA_DIR}/postgres-backup {DATA_DIR}/postgres");
        self.host.run(&put).map(drop)
    }

    fn database(&self) -> String {
        format!("-h {DATA_DIR}/postgres/run -U wattle -d postgres")
    }

    pub fn server(&mut self) -> Result<&mut Daemon> {
        self.server.as_mut().context("no coordinator runs")
    }

    /// Ends the server with `kill -9`, and with it its Postgres.
    pub fn kill(&mut self) -> Result<()> {
        self.server.take().context("no coordinator runs")?.kill()
    }

    /// Asks the server to end; it has to end well.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.server.take().context("no coordinator runs")?.stop()?;
        if status.success() {
            Ok(())
        } else {
            bail!("the coordinator ended with {status}")
        }
    }

    /// What goes before a command that runs as the server does.
    ///
    /// Postgres does not run as root. The server steps down to another user for it, which only real
    /// root can; root of a user namespace is called something else in one more namespace instead.
    fn as_its_user(&self) -> Result<Command> {
        let mut command = self.host.enter();
        if !enter::is_real_root()? {
            command.args(["unshare", "--user", "--map-user=1000", "--map-group=1000"]);
        }
        Ok(command)
    }
}

/// Waits until a coordinator answers that it is ready; before each look, `prepare` does what the
/// look needs.
fn wait_until_ready(
    server: &mut Daemon,
    api: &Api,
    mut prepare: impl FnMut() -> Result<()>,
) -> Result<()> {
    wait_for("the coordinator is ready", patience(60.0), || {
        if let Err(ended) = server.expect_running() {
            return Ok(Err(ended));
        }
        prepare()?;
        let answer = api.request("GET", "/readyz", None)?;
        if answer.status == 200 {
            Ok(Ok(()))
        } else {
            bail!("{answer:?}")
        }
    })?
}

/// What agents and people call a coordinator by.
pub fn url(port: u16) -> String {
    format!("https://{ADDRESS}:{port}")
}

/// Makes a folder which, before all others in the path, spares coordinators the making of a
/// cluster.
pub fn make_cluster(folder: &Path) -> Result<()> {
    let mut script = Command::new(repository().join("lab/cluster"));
    script.arg(folder);
    process::run(script, None).map(drop)
}
