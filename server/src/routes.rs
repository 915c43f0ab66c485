//! The resources of the REST interface: each with its handlers, its checks and its SQL; and every
//! route, with what it takes to call it.

pub mod api_tokens;
pub mod enrolment;
pub mod event_stream;
pub mod events;
pub mod health;
pub mod identity_rotation;
pub mod links;
pub mod mailbox;
pub mod mesh;
pub mod metrics;
pub mod nodes;
pub mod readmission;
pub mod removals;
pub mod report;
pub mod rotation;
pub mod sites;
pub mod stream;
pub mod tokens;
pub mod webhooks;
pub mod wg_quick;

use utoipa_axum::{router::OpenApiRouter, routes};
use wattle_mesh::access::Action;

use crate::state::app::App;

/// The routes that are for an action.
pub fn for_action(action: Action) -> OpenApiRouter<App> {
    let routes = OpenApiRouter::default();
    match action {
        Action::Ask => routes
            .routes(routes!(health::healthz))
            .routes(routes!(health::readyz))
            .routes(routes!(enrolment::start))
            .routes(routes!(enrolment::finish))
            .routes(routes!(identity_rotation::succeed)),
        Action::Read => routes
            .routes(routes!(sites::list))
            .routes(routes!(sites::show))
            .routes(routes!(tokens::list))
            .routes(routes!(tokens::show))
            .routes(routes!(nodes::list))
            .routes(routes!(nodes::show))
            .routes(routes!(removals::list))
            .routes(routes!(links::list))
            .routes(routes!(links::show))
            .routes(routes!(links::history))
            .routes(routes!(event_stream::follow))
            .routes(routes!(metrics::show))
            .routes(routes!(health::version))
            .routes(routes!(mesh::show))
            .routes(routes!(api_tokens::own))
            .routes(routes!(events::list)),
        Action::Change => routes
            .routes(routes!(sites::create))
            .routes(routes!(sites::change, sites::remove))
            .routes(routes!(sites::import))
            .routes(routes!(wg_quick::create))
            .routes(routes!(tokens::create))
            .routes(routes!(tokens::revoke))
            .routes(routes!(nodes::change, nodes::revoke))
            .routes(routes!(nodes::admit))
            .routes(routes!(removals::confirm))
            .routes(routes!(readmission::readmit))
            .routes(routes!(rotation::request)),
        Action::Grant => routes
            .routes(routes!(api_tokens::create, api_tokens::list))
            .routes(routes!(api_tokens::show, api_tokens::revoke)),
        Action::Configure => routes
            .routes(routes!(mesh::change))
            .routes(routes!(webhooks::create, webhooks::list))
            .routes(routes!(webhooks::remove))
            .routes(routes!(webhooks::test)),
        Action::TakePart => routes
            .routes(routes!(stream::follow))
            .routes(routes!(stream::show))
            .routes(routes!(report::receive))
            .routes(routes!(links::own))
            .routes(routes!(mailbox::exchange))
            .routes(routes!(rotation::advance)),
    }
}
