//! `wattle-agent run`, from start to end. The loop itself is in `agent`.

mod agent;

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};
use tracing::{info, warn};
use wattle_mesh::keys::node_keys::NodeKeys;

use self::agent::{Agent, Ended};
use crate::{
    config::{CONFIG, Options, Settings},
    control::{Control, Request},
    doctor::Examined,
    follow,
    host::Host,
    identity::{Membership, Slot},
    interface_lock::InterfaceLock,
    kernel::Kernel,
    metrics::MetricsServer,
    output,
    status::NOT_A_NODE,
    store::Store,
    supervisor::Supervisor,
    underlay::UnderlayStore,
};

/// How often a machine that is not a node looks whether it has become one.
const JOIN_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Follows the mesh. `options` and `metrics` are the command line's.
pub(crate) async fn run(
    mut settings: Settings,
    options: &Options,
    metrics: Option<SocketAddr>,
) -> anyhow::Result<()> {
    if settings.config != Path::new(CONFIG) && !settings.config.exists() {
        warn!(
            "there is no {}: this host has no settings",
            settings.config.display()
        );
    }
    let store = Store::open(&settings.state_dir)?;
    let _alone = store.lock()?;
    let lock = Arc::new(InterfaceLock::new(&settings, &store)?);
    // Where another agent has it, the loop tries again, and tells.
    if let Err(problem) = lock.hold() {
        warn!("{}", problem.words);
    }
    let mut control = Control::open(&settings);
    let mut signals = Signals::new()?;
    let mut metrics = MetricsServer::new(metrics);
    metrics.follow(&settings).await?;
    // The agent is ready when the tunnels that it knows from disk are up: at boot, the network
    // waits for that (packaging/systemd).
    let mut supervisor = Supervisor::new();
    // What the host reaches before it hears of the mesh. Where it has, its disk tells.
    let kernel = Kernel::new(settings.interface.clone(), &store)?;
    let underlay = UnderlayStore::open(&kernel, &store, &[]);
    let looked = async {
        if matches!(follow::load_view(&store), Ok(None)) {
            underlay.look_at_resolvers().await;
        }
    };
    let joined = wait_for_join(&store, &mut control, &mut supervisor);
    let mut joined = Box::pin(async { tokio::join!(joined, looked).0 });
    let (node_keys, mut membership) = loop {
        tokio::select! {
            joined = &mut joined => break joined?,
            asked = signals.next() => match asked {
                Asked::Stop => return Ok(()),
                Asked::Reload => reload(&mut settings, options, &mut metrics).await,
            },
        }
    };
    drop(joined);
    let mut node_keys = Arc::new(node_keys);
    loop {
        // `join --lock` may just have written to the file.
        reload(&mut settings, options, &mut metrics).await;
        let mut agent = Agent::new(
            &settings,
            store.clone(),
            Arc::clone(&lock),
            node_keys,
            membership,
            metrics.metrics(),
        )?;
        agent.start_from_disk().await;
        let ended = agent.run(&mut control, &mut signals, &mut supervisor);
        match ended.await {
            Ended::Stopped => break,
            Ended::Anew(keys, as_member) => (node_keys, membership) = (keys, *as_member),
        }
    }
    info!("stopped; the tunnels stay up");
    Ok(())
}

/// Takes over what the file of settings says now. Where that is not valid, all stays as it is.
async fn reload(settings: &mut Settings, options: &Options, metrics: &mut MetricsServer) {
    let read = async {
        let read = Settings::load(options)?;
        metrics.follow(&read).await?;
        anyhow::Ok(read)
    };
    match read.await {
        Ok(read) if read == *settings => {}
        Ok(read) => {
            let file = read.config.clone();
            info!("takes over what {} says now", file.display());
            if let Some(name) = settings.take_over(read) {
                warn!("{name} is in force from the next start of the agent on");
            }
        }
        Err(error) => warn!("the settings stay as they were: {error:#}"),
    }
}

pub(crate) async fn down(settings: &Settings) -> anyhow::Result<()> {
    let store = Store::open(&settings.state_dir)?;
    let _alone = store
        .lock()
        .context("an agent is running here and would restore everything: stop it first")?;
    let gone = Host::new(settings, &store, &[])?.down().await?;
    if gone.is_empty() {
        output::line("nothing to remove");
    }
    gone.into_iter().for_each(output::line);
    Ok(())
}

/// What a signal asks for.
enum Asked {
    Stop,
    Reload,
}

/// The signals that the agent obeys.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }
}

async fn wait_for_join(
    store: &Store,
    control: &mut Control,
    supervisor: &mut Supervisor,
) -> anyhow::Result<(NodeKeys, Membership)> {
    let mut told = false;
    loop {
        if let Some((node_keys, Some(membership))) = Slot::Present.load(store)? {
            return Ok((node_keys, membership));
        }
        supervisor.alive();
        if !told {
            info!("this machine is not a node yet: waiting for `wattle-agent join`");
            told = true;
        }
        tokio::select! {
            () = sleep(JOIN_POLL_INTERVAL) => {}
            // Of a doctor it knows nothing that the command would not find.
            call = control.asked() => if call.request == Request::Doctor {
                call.answer(Ok(None::<Examined>));
            } else {
                call.answer(Err::<(), _>(NOT_A_NODE.to_owned()));
            },
        }
    }
}
