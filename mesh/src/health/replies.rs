//! Whether hosts of the LANs here answer packets of other sites: those that are asked and never
//! answer may send their answers to another router.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;

/// For how many seconds the table `inet wattle` remembers a packet.
pub const SEEN_S: u64 = 60;
/// How long a host is remembered that is neither asked nor answers.
const REMEMBERED: Duration = Duration::from_secs(600);
/// As many hosts are remembered.
const MOST_HOSTS: usize = 4096;
/// Looks in a row at which a host had not answered, when it counts as silent: at the first it may be
/// about to answer.
const LOOKS: u8 = 2;

/// Hosts whose packets the table `inet wattle` saw in the last [`SEEN_S`] seconds, and how long ago.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flows {
    /// Hosts of the LANs here that others began a connection with, or pinged.
    pub asked: BTreeMap<IpAddr, Duration>,
    /// Hosts of the LANs here that answered such a packet.
    pub answered: BTreeMap<IpAddr, Duration>,
    /// Hosts of the LANs here that began a connection with others, or pinged them, and the
    /// interfaces by which these packets came.
    pub came: BTreeSet<(String, IpAddr)>,
}

/// What became of the packets to each host, and by which interfaces theirs come.
#[derive(Clone, Debug, Default)]
pub struct Replies {
    hosts: BTreeMap<IpAddr, Asked>,
    /// When each was last seen.
    came: BTreeMap<(String, IpAddr), Duration>,
}

/// A host that was asked. Times are of a clock that only goes forward, [`SEEN_S`] ahead so that none
/// is before its beginning.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    /// Looks in a row at which it had not answered, and when it had been asked at the first.
    unanswered: u8,
    since: Duration,
    /// When it last answered.
    answered_at: Option<Duration>,
    /// When it was last seen.
    last: Duration,
}

impl Replies {
    /// Takes in what was seen at `now`, of a clock that only goes forward.
    pub fn note(&mut self, flows: &Flows, now: Duration) {
        let now = now + Duration::from_secs(SEEN_S);
        self.hosts
            .retain(|_, asked| now.saturating_sub(asked.last) < REMEMBERED);
        self.came
            .retain(|_, last| now.saturating_sub(*last) < REMEMBERED);
        for came in &flows.came {
            if self.came.len() < MOST_HOSTS || self.came.contains_key(came) {
                self.came.insert(came.clone(), now);
            }
        }
        let hosts: BTreeSet<_> = flows.asked.keys().chain(flows.answered.keys()).collect();
        for host in hosts {
            if self.hosts.len() >= MOST_HOSTS && !self.hosts.contains_key(host) {
                continue;
            }
            let at = |times: &BTreeMap<IpAddr, Duration>| {
                let ago = times.get(host)?;
                Some(now.saturating_sub(*ago))
            };
            self.hosts
                .entry(*host)
                .or_default()
                .note(at(&flows.asked), at(&flows.answered));
        }
    }

    /// Whether another look would tell more: a host was asked that may be about to answer.
    pub fn is_open(&self) -> bool {
        let open = 1..LOOKS;
        self.hosts
            .values()
            .any(|asked| open.contains(&asked.unanswered))
    }

    /// Hosts of these networks that are asked and do not answer.
    pub fn silent(&self, networks: &[IpNet]) -> BTreeSet<IpAddr> {
        let silent = self.hosts.iter().filter(|(_, asked)| asked.is_silent());
        let hosts = silent.map(|(host, _)| *host);
        hosts
            .filter(|host| networks.iter().any(|network| network.contains(host)))
            .collect()
    }

    /// Those of these networks of which a host has answered since the last of the silent ones fell
    /// silent.
    pub fn answering(&self, networks: &[IpNet]) -> BTreeSet<IpNet> {
        let answers = |network: &&IpNet| {
            let hosts = || {
                let hosts = self
                    .hosts
                    .iter()
                    .filter(|(host, _)| network.contains(*host));
                hosts.map(|(_, asked)| asked)
            };
            let silent = hosts().filter(|asked| asked.is_silent());
            let since = silent.map(|asked| asked.since).max();
            hosts().filter_map(|asked| asked.answered_at).max() > since
        };
        networks.iter().filter(answers).copied().collect()
    }

    /// Of these networks the interfaces by which packets of their hosts come, each with one host.
    pub fn came(&self, networks: &[IpNet]) -> BTreeSet<(String, IpAddr)> {
        let mut ways = BTreeMap::new();
        for (interface, host) in self.came.keys() {
            for network in networks.iter().filter(|network| network.contains(host)) {
                ways.entry((interface, network)).or_insert(*host);
            }
        }
        let came = ways.into_iter();
        came.map(|((interface, _), host)| (interface.clone(), host))
            .collect()
    }
}

impl Asked {
    /// Takes in when it was last asked and when it last answered.
    fn note(&mut self, asked_at: Option<Duration>, answered_at: Option<Duration>) {
        if answered_at > self.answered_at {
            (self.unanswered, self.answered_at) = (0, answered_at);
        }
        if let Some(asked_at) = asked_at.filter(|asked_at| Some(*asked_at) > answered_at) {
            if self.unanswered == 0 {
                self.since = asked_at;
            }
            self.unanswered = self.unanswered.saturating_add(1);
        }
        self.last = self.last.max(asked_at.max(answered_at).unwrap_or_default());
    }

    fn is_silent(&self) -> bool {
        self.unanswered >= LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hosts with the milliseconds since they were asked and since they answered.
    fn flows(asked: &[(&str, u64)], answered: &[(&str, u64)]) -> Flows {
        let hosts = |known: &[(&str, u64)]| {
            let ago =
                |(host, ms): &(&str, u64)| (host.parse().unwrap(), Duration::from_millis(*ms));
            known.iter().map(ago).collect()
        };
        Flows {
            asked: hosts(asked),
            answered: hosts(answered),
            came: BTreeSet::new(),
        }
    }

    fn hosts(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_host_is_silent_that_is_asked_and_does_not_answer_until_it_does() {
        const MUTE: &str = "10.10.0.5";
        const TALKS: &str = "10.10.0.6";
        let lan: [IpNet; 1] = ["10.10.0.0/24".parse().unwrap()];
        let mut replies = Replies::default();
        let at = Duration::from_secs;
        let asked = [(MUTE, 200), (TALKS, 200), ("10.11.0.5", 200)];
        replies.note(&flows(&asked, &[(TALKS, 199)]), at(0));
        assert_eq!(
            replies.silent(&lan),
            hosts(&[]),
            "it may be about to answer"
        );
        assert!(replies.is_open());
        replies.note(&flows(&asked, &[(TALKS, 199)]), at(1));
        assert_eq!(replies.silent(&lan), hosts(&[MUTE]));
        assert_eq!(replies.answering(&lan), lan.into());
        assert!(!replies.is_open());
        // Nobody asks any more: what was found stands for a while.
        replies.note(&Flows::default(), at(600));
        assert_eq!(replies.silent(&lan), hosts(&[MUTE]));
        replies.note(&Flows::default(), at(601));
        assert_eq!(replies.silent(&lan), hosts(&[]));
        // From one moment on nobody answers who did before.
        let all = [(MUTE, 199), (TALKS, 199)];
        replies.note(&flows(&asked, &all), at(700));
        assert_eq!(replies.answering(&lan), lan.into());
        for second in [1, 2] {
            let before = all.map(|(host, ms)| (host, ms + 1_000 * second));
            replies.note(&flows(&asked, &before), at(700 + second));
        }
        assert_eq!(replies.silent(&lan), hosts(&[MUTE, TALKS]));
        assert_eq!(replies.answering(&lan), [].into(), "they did before");
        replies.note(&flows(&asked, &[(MUTE, 100)]), at(703));
        assert_eq!(replies.silent(&lan), hosts(&[TALKS]));
        assert_eq!(replies.answering(&lan), lan.into());
    }

    #[test]
    fn a_host_that_answers_and_is_asked_again_at_each_look_is_not_silent() {
        let lan: [IpNet; 1] = ["10.10.0.0/24".parse().unwrap()];
        let mut replies = Replies::default();
        for look in 0..10 {
            let flows = flows(&[("10.10.0.5", 0)], &[("10.10.0.5", 400)]);
            replies.note(&flows, Duration::from_secs(look));
            assert_eq!(replies.silent(&lan), hosts(&[]));
        }
    }

    #[test]
    fn by_which_interfaces_hosts_come_is_remembered_with_one_of_them() {
        let lans: [IpNet; 2] = ["10.10.0.0/24", "10.11.0.0/24"].map(|lan| lan.parse().unwrap());
        let came = |ways: &[(&str, &str)]| {
            let ways = ways.iter();
            ways.map(|(by, host)| ((*by).to_owned(), host.parse().unwrap()))
                .collect::<BTreeSet<_>>()
        };
        let seen = |ways: &[(&str, &str)]| Flows {
            came: came(ways),
            ..Flows::default()
        };
        let mut replies = Replies::default();
        let at = Duration::from_secs;
        let (first, second) = (("lan0", "10.10.0.5"), ("lan1", "10.11.0.5"));
        replies.note(
            &seen(&[first, ("lan0", "10.10.0.6"), ("eth0", "8.8.8.8")]),
            at(0),
        );
        replies.note(&seen(&[second]), at(300));
        assert_eq!(replies.came(&lans), came(&[first, second]));
        replies.note(&Flows::default(), at(600));
        assert_eq!(replies.came(&lans), came(&[second]));
    }

    #[test]
    fn a_scan_of_all_addresses_is_not_remembered_without_end() {
        let mut replies = Replies::default();
        let asked =
            (0..10_000u32).map(|number| (IpAddr::from(number.to_be_bytes()), Duration::ZERO));
        let flows = Flows {
            asked: asked.collect(),
            ..Flows::default()
        };
        replies.note(&flows, Duration::ZERO);
        assert_eq!(replies.hosts.len(), MOST_HOSTS);
    }
}
