//! What a site may be, as far as it can be told without knowing the other sites.

pub(crate) mod coordinators;

use ipnet::{IpNet, Ipv4Net};
use wattle_wire::{
    admin::SiteSpec,
    endpoint::Endpoint,
    name::Name,
    problem::{Holder, ProblemDetails},
    subnet::{Subnet, overlap},
};

use std::collections::BTreeMap;

use crate::{
    error::{self, ErrorCode, Result},
    text,
};

const MOST_LABELS: usize = 32;

/// Checks that a site is within all limits.
pub(crate) fn check(spec: &SiteSpec, tunnel_prefix: Ipv4Net) -> Result<()> {
    text::check_name(&spec.name)?;
    text::check("description", &spec.description)?;
    check_labels(&spec.labels)?;
    check_subnets(&spec.subnets, tunnel_prefix)?;
    if let Some(endpoint) = spec.endpoint {
        check_endpoint(endpoint, &spec.subnets, tunnel_prefix)?;
    }
    Ok(())
}

/// The field of the body that holds a prefix which overlaps with this one.
pub(crate) fn field_of(spec: &SiteSpec, prefix: IpNet) -> String {
    let mut subnets = spec.subnets.iter();
    let position = subnets.position(|subnet| subnet.overlaps(prefix));
    position.map_or_else(|| "subnets".to_owned(), |index| format!("subnets[{index}]"))
}

fn check_labels(labels: &BTreeMap<Name, String>) -> Result<()> {
    if labels.len() > MOST_LABELS {
        return Err(error::invalid(
            ErrorCode::TooMany,
            "labels",
            format!("a site has at most {MOST_LABELS} labels"),
        )
        .into());
    }
    labels
        .iter()
        .try_for_each(|(label, value)| text::check(&format!("labels.{label}"), value))
}

fn check_subnets(subnets: &[Subnet], tunnel_prefix: Ipv4Net) -> Result<()> {
    if subnets.len() > Subnet::MOST {
        return Err(error::invalid(
            ErrorCode::TooMany,
            "subnets",
            format!("a site has at most {} subnets", Subnet::MOST),
        )
        .into());
    }
    for (index, subnet) in subnets.iter().enumerate() {
        let field = format!("subnets[{index}]");
        if subnet.overlaps(tunnel_prefix.into()) {
            let detail = format!(
                "{subnet} overlaps with {tunnel_prefix}, from which the mesh takes its tunnel \
                 addresses"
            );
            let holder = Holder {
                site: "mesh".to_owned(),
                holds: tunnel_prefix.to_string(),
            };
            return Err(error::taken(ErrorCode::SubnetTaken, &field, detail, Some(holder)).into());
        }
        if let Some(other) = subnets[..index]
            .iter()
            .find(|other| overlap(other.net(), subnet.net()))
        {
            return Err(error::invalid(
                ErrorCode::SubnetsOverlap,
                field,
                format!("{subnet} overlaps with {other} of the same site; give one of them"),
            )
            .into());
        }
    }
    Ok(())
}

/// Packets to an endpoint inside a tunnel's prefix would be sent into that tunnel.
fn check_endpoint(endpoint: Endpoint, subnets: &[Subnet], tunnel_prefix: Ipv4Net) -> Result<()> {
    let address = IpNet::from(endpoint.socket().ip());
    let own = subnets
        .iter()
        .map(|subnet| subnet.net())
        .find(|prefix| overlap(*prefix, address));
    match own.or_else(|| Some(IpNet::V4(tunnel_prefix)).filter(|prefix| overlap(*prefix, address)))
    {
        Some(prefix) => Err(endpoint_in_subnet(endpoint, prefix, None).into()),
        None => Ok(()),
    }
}

/// An endpoint lies inside a prefix that is reached through a tunnel.
pub(crate) fn endpoint_in_subnet(
    endpoint: Endpoint,
    prefix: IpNet,
    holder: Option<Holder>,
) -> ProblemDetails {
    let detail = format!(
        "{endpoint} lies inside {prefix}, which is reached through a tunnel; give the gateway's \
         address outside of it"
    );
    ProblemDetails {
        holder,
        ..error::invalid(ErrorCode::EndpointInSubnet, "endpoint", detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn problem_of(json: &str) -> Option<(u16, String, Option<String>)> {
        let spec: SiteSpec = serde_json::from_str(json).unwrap();
        let Err(Error::Refused(problem)) = check(&spec, "10.99.0.0/16".parse().unwrap()) else {
            return None;
        };
        Some((problem.status, problem.code, problem.field))
    }

    #[test]
    fn limits_of_a_site() {
        assert_eq!(
            problem_of(
                r#"{"name":"dublin","endpoint":"203.0.113.10:51820","subnets":["10.10.0.0/24"]}"#
            ),
            None
        );
        let expect = |json: &str, status: u16, code: &str, field: &str| {
            assert_eq!(
                problem_of(json),
                Some((status, code.to_owned(), Some(field.to_owned()))),
                "{json}"
            );
        };
        expect(
            r#"{"name":"a","subnets":["10.10.0.0/24","10.10.0.0/25"]}"#,
            422,
            "subnets_overlap",
            "subnets[1]",
        );
        expect(
            r#"{"name":"a","subnets":["10.98.0.0/15"]}"#,
            409,
            "subnet_taken",
            "subnets[0]",
        );
        expect(
            r#"{"name":"a","endpoint":"10.10.0.1:51820","subnets":["10.10.0.0/24"]}"#,
            422,
            "endpoint_in_subnet",
            "endpoint",
        );
        expect(
            r#"{"name":"a","endpoint":"10.99.3.4:51820"}"#,
            422,
            "endpoint_in_subnet",
            "endpoint",
        );
        expect(
            r#"{"name":"a","description":"a\u202eb"}"#,
            422,
            "invalid_text",
            "description",
        );
        expect(
            r#"{"name":"a","labels":{"x":"a\nb"}}"#,
            422,
            "invalid_text",
            "labels.x",
        );
        expect(
            r#"{"name":"0192f0c1-2345-7000-8000-000000000001"}"#,
            422,
            "invalid_field",
            "name",
        );
        let labels: Vec<_> = (0..33).map(|number| format!(r#""l{number}":"""#)).collect();
        expect(
            &format!(r#"{{"name":"a","labels":{{{}}}}}"#, labels.join(",")),
            422,
            "too_many",
            "labels",
        );
        let subnets: Vec<_> = (0..=256)
            .map(|number| format!(r#""10.{}.{}.0/24""#, 20 + number / 256, number % 256))
            .collect();
        expect(
            &format!(r#"{{"name":"a","subnets":[{}]}}"#, subnets.join(",")),
            422,
            "too_many",
            "subnets",
        );
    }
}
