//! What a node hears and says, in a line each.

use crate::agent::node::{Input, Look, Output, Reply, Request, Save};

pub(super) fn of_input(input: &Input) -> String {
    match input {
        Input::Restored(stored) => format!("the disk has the view of {}", stored.position),
        Input::Connected => "a stream is open".to_owned(),
        Input::Disconnected { reason, .. } => format!("no stream: {reason}"),
        Input::Message(message) => {
            let text = serde_json::to_value(message).unwrap();
            format!("the coordinator says {}", text["type"].as_str().unwrap())
        }
        Input::Observed(Ok(observation)) => {
            let peers = observation.observed.interface.as_ref();
            let peers = peers.map(|interface| interface.peers.len());
            format!("the host was observed, peers: {peers:?}")
        }
        Input::Observed(Err(error)) => format!("the host was not observed: {error:?}"),
        Input::PeersObserved { .. } => "the peers were observed".to_owned(),
        Input::Applied(Ok(())) => "applied".to_owned(),
        Input::Applied(Err(failure)) => format!("not applied: {}", failure.words),
        Input::Saved(Ok(())) => "saved".to_owned(),
        Input::Saved(Err(error)) => format!("not saved: {error}"),
        Input::Reply(reply) => of_reply(reply),
        Input::Probed(..) => "probes".to_owned(),
        Input::LansObserved(_) => "LANs were observed".to_owned(),
        Input::Rotate(key) => format!("somebody asks for another key: {key:?}"),
        Input::Confirm => "somebody confirms".to_owned(),
        Input::Timer => "time passed".to_owned(),
    }
}

fn of_reply(reply: &Reply) -> String {
    match reply {
        Reply::Report(is_taken) => format!("the report was taken: {is_taken}"),
        Reply::Mailbox(_) => "the mailbox answers".to_owned(),
        Reply::Rotation(_) => "the coordinator answers about the key".to_owned(),
        Reply::Identity(_) => "the coordinator answers about the identity".to_owned(),
        Reply::SeenAt(_) => "the coordinator says where peers see this node".to_owned(),
    }
}

pub(super) fn of_output(output: &Output) -> String {
    match output {
        Output::Observe(Look::Host) => "observe the host".to_owned(),
        Output::Observe(Look::Peers) => "observe the peers".to_owned(),
        Output::Apply(steps) => {
            let steps: Vec<_> = steps.iter().map(ToString::to_string).collect();
            format!("apply: {}", steps.join("; "))
        }
        Output::Save(Save::View(stored)) => format!("save the view of {}", stored.position),
        Output::Save(Save::Psks(_)) => "save the preshared keys".to_owned(),
        Output::Save(Save::Keys(keys)) => format!(
            "save keys: statement {}, with a next one: {}",
            keys.sequence(),
            keys.next_key().is_some()
        ),
        Output::Save(Save::Connection(error)) => format!("save how it is connected: {error:?}"),
        Output::Send(request) => of_request(request),
        Output::AskForSnapshot => "ask for a snapshot".to_owned(),
        Output::Settled => "settled".to_owned(),
        Output::BeginAnew => "begin anew".to_owned(),
        Output::Log(level, words) => format!("log, {level:?}: {words}"),
    }
}

fn of_request(request: &Request) -> String {
    match request {
        Request::Report(report) => {
            let problems = report.problems.iter().map(|problem| &problem.words);
            let problems: Vec<_> = problems.collect();
            format!(
                "report {}, links: {}, problems: {problems:?}",
                report.applied,
                report.links.len()
            )
        }
        Request::Mailbox(request) => format!(
            "leave {} messages in the mailbox, and fetch those that wait",
            request.leave.len()
        ),
        Request::Rotation(step) => {
            let step = serde_json::to_value(step).unwrap();
            let name = step.as_object().unwrap().keys().next().unwrap().clone();
            format!("tell the coordinator of the key: {name}")
        }
        Request::Identity(_) => "tell the coordinator of the identity".to_owned(),
        Request::OwnLinks => "ask where peers see this node".to_owned(),
    }
}
