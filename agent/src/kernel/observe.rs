//! The host as it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use wattle_mesh::{
    health::replies::Flows,
    host::state::{Family, Interface, Observed, ObservedPeer, ObservedRuleset},
};
use wattle_wire::{
    key::WireguardKey,
    report::{Problem, ProblemCode},
};

use super::{
    Holder, Kernel, device_state::Dump, forwarding, link::Tables, nft, owned::OwnedDevice,
    userspace,
};

/// What the host lets pass.
#[derive(Debug)]
pub(crate) struct Policy {
    forwarding: BTreeSet<Family>,
    ruleset: ObservedRuleset,
    flows: Flows,
}

impl Kernel {
    /// The host as it is. An interface of our name that is not WireGuard, or behind which no device
    /// answers, counts as none.
    pub(crate) async fn observe(&self) -> anyhow::Result<Observed> {
        self.observe_with(self.observe_policy().await?).await
    }

    /// What the host lets pass. This is the slow part of [`Kernel::observe`]: `nft` is started for
    /// it.
    pub(crate) async fn observe_policy(&self) -> anyhow::Result<Policy> {
        let made = self.owned.get().ruleset;
        let (ruleset, flows) = nft::observe(made.as_ref(), || self.nodes()).await?;
        Ok(Policy {
            forwarding: forwarding::observe()?,
            ruleset,
            flows,
        })
    }

    /// The quick part of [`Kernel::observe`].
    pub(crate) async fn observe_with(&self, policy: Policy) -> anyhow::Result<Observed> {
        let Policy {
            forwarding,
            ruleset,
            flows,
        } = policy;
        let made = self.owned.read(|owned| owned.underlay.clone());
        Ok(Observed {
            interface: self.observe_interface().await?,
            underlay: Tables::open()?.underlay_routes(&made).await?,
            forwarding,
            ruleset,
            flows,
        })
    }

    /// Those of these hosts that are on a link of this host and answered ARP or neighbour discovery.
    pub(crate) async fn neighbours(
        &self,
        hosts: &BTreeSet<IpAddr>,
    ) -> anyhow::Result<BTreeSet<IpAddr>> {
        if hosts.is_empty() {
            return Ok(BTreeSet::new());
        }
        let found = Tables::open()?.neighbours().await?;
        Ok(hosts.intersection(&found).copied().collect())
    }

    /// The peers alone, as they are; `None` without an interface. This costs a fraction of
    /// [`Kernel::observe`].
    pub(crate) async fn observe_peers(
        &self,
    ) -> anyhow::Result<Option<BTreeMap<WireguardKey, ObservedPeer>>> {
        let Holder::Agent { dump, .. } = self.holder(&Tables::open()?).await? else {
            return Ok(None);
        };
        Ok(dump.map(|(_, dump)| dump.peers))
    }

    /// What of the agent's own memory could not be kept, and a device of before an upgrade.
    pub(crate) fn problems(&self) -> impl Iterator<Item = Problem> {
        let unkept = self.owned.problem();
        let unkept = unkept.map(|words| Problem::new(ProblemCode::State, words));
        let device = self.owned.interface().map(|made| made.device);
        let old = match device {
            Some(OwnedDevice::Userspace {
                process: Some(process),
            }) if userspace::is_old(process) => Some(process),
            Some(OwnedDevice::Userspace { .. } | OwnedDevice::Kernel) | None => None,
        };
        let old = old.map(|process| Problem {
            subject: self.interface.to_string(),
            remedy: Some(format!("kill {process}")),
            ..Problem::new(
                ProblemCode::OldDevice,
                format!(
                    "process {process}, which moves the packets of {}, is still the program of \
                     before the last upgrade. The agent starts the new one when it ends; the \
                     tunnels stop for some seconds then",
                    self.interface
                ),
            )
        });
        unkept.into_iter().chain(old)
    }

    /// The interface of our name alone; `None` where there is none that counts.
    pub(crate) async fn observe_interface(&self) -> anyhow::Result<Option<Interface>> {
        let tables = Tables::open()?;
        let Holder::Agent {
            found,
            dump: Some((device, dump)),
        } = self.holder(&tables).await?
        else {
            return Ok(None);
        };
        let Dump {
            public_key,
            listen_port,
            peers,
        } = dump;
        Ok(Some(Interface {
            device,
            up: found.up,
            mtu: found.mtu,
            addresses: tables.addresses(found.index).await?,
            routes: tables.routes(found.index).await?,
            public_key,
            listen_port,
            peers,
        }))
    }
}
