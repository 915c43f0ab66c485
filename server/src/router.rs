//! Every route, and who may call it.

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderName, HeaderValue, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::Response,
};
use tower_http::{catch_panic::CatchPanicLayer, trace::TraceLayer};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ComponentsBuilder, Content, InfoBuilder, OpenApi, OpenApiBuilder, Ref, ResponseBuilder,
        path::PathItem,
        security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};
use wattle_wire::problem::{Holder, PROBLEM_JSON, Problem};

use crate::{
    app::App,
    auth::{self, RequestId},
    body::LARGEST_BODY,
    enrolment, error, health, links, nodes, report, sites, stream, tokens,
};

/// Position of the copy from which an answer was read.
const POSITION: HeaderName = HeaderName::from_static("wattle-position");
/// The longest path that is logged.
const LONGEST_PATH: usize = 200;

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Anybody: there is nothing to see, or the body holds the credential.
    Anyone,
    /// People and scripts.
    ApiToken,
    /// Enrolled nodes.
    Node,
}

fn anyone() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::openapi))
        .routes(routes!(enrolment::start))
        .routes(routes!(enrolment::finish))
}

fn api_token() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(sites::create, sites::list))
        .routes(routes!(sites::show, sites::change, sites::remove))
        .routes(routes!(tokens::create, tokens::list))
        .routes(routes!(tokens::show, tokens::revoke))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::show, nodes::revoke))
        .routes(routes!(links::list))
}

fn node() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(stream::follow)).routes(routes!(stream::show)).routes(routes!(report::receive))
}

/// The router with everything around it.
pub fn router(app: App) -> Router {
    let anyone: Router<App> = anyone().into();
    let api_token: Router<App> = api_token().into();
    let node: Router<App> = node().into();
    anyone
        .merge(api_token.route_layer(from_fn_with_state(app.clone(), auth::require_api_token)))
        .merge(node.route_layer(from_fn_with_state(app.clone(), auth::require_node)))
        .fallback(async || error::respond(&error::not_found("path")))
        .method_not_allowed_fallback(async || error::respond(&error::method_not_allowed()))
        .layer(from_fn_with_state(app.clone(), with_position))
        .layer(CatchPanicLayer::custom(|_| error::respond(&error::internal())))
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(TraceLayer::new_for_http().make_span_with(span))
        .layer(from_fn(auth::with_request_id))
        .with_state(app)
}

/// Each operation, and who may call it.
pub fn table() -> Vec<(&'static str, String, Caller)> {
    let groups = [(anyone(), Caller::Anyone), (api_token(), Caller::ApiToken), (node(), Caller::Node)];
    let rows = groups.into_iter().flat_map(|(router, caller)| {
        let paths = router.into_openapi().paths.paths;
        paths.into_iter().flat_map(move |(path, item)| methods(&item).into_iter().map(move |method| (method, path.clone(), caller)))
    });
    rows.collect()
}

/// The description of the interface, collected from the handlers.
pub fn openapi() -> OpenApi {
    let mut api = OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Wattle")
                .description(Some("The coordinator of a full WireGuard mesh of sites."))
                .version(env!("CARGO_PKG_VERSION"))
                .build(),
        )
        .components(Some(
            ComponentsBuilder::new()
                .schema(Problem::name(), Problem::schema())
                .schema(Holder::name(), Holder::schema())
                .security_scheme("api_token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)))
                .security_scheme("node", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)))
                .build(),
        ))
        .build();
    for (router, scheme) in [(anyone(), None), (api_token(), Some("api_token")), (node(), Some("node"))] {
        let mut part = router.into_openapi();
        for operation in part.paths.paths.values_mut().flat_map(operations) {
            operation.security = scheme.map(|scheme| vec![SecurityRequirement::new(scheme, Vec::<String>::new())]);
            let problem = Content::new(Some(Ref::from_schema_name("Problem")));
            let problem = ResponseBuilder::new().description("What was wrong, and what to do about it").content(PROBLEM_JSON, problem);
            operation.responses.responses.insert("default".to_owned(), problem.build().into());
        }
        api.merge(part);
    }
    api
}

/// The description as text, as it is checked in.
pub fn openapi_json() -> String {
    let text = openapi().to_pretty_json().unwrap_or_default();
    text + "\n"
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut utoipa::openapi::path::Operation> {
    [&mut item.get, &mut item.post, &mut item.patch, &mut item.put, &mut item.delete].into_iter().flatten()
}

fn methods(item: &PathItem) -> Vec<&'static str> {
    let methods = [("GET", &item.get), ("POST", &item.post), ("PATCH", &item.patch), ("PUT", &item.put), ("DELETE", &item.delete)];
    methods.into_iter().filter(|(_, operation)| operation.is_some()).map(|(method, _)| method).collect()
}

async fn with_position(State(app): State<App>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Ok(position) = HeaderValue::from_str(&app.copy.position().to_string()) {
        response.headers_mut().insert(POSITION, position);
    }
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Paths hold names and ids, never secrets; queries, headers and bodies are not logged.
fn span(request: &Request) -> tracing::Span {
    let id = request.extensions().get::<RequestId>().map(|id| id.0.as_str());
    let path: String = request.uri().path().chars().take(LONGEST_PATH).collect();
    tracing::info_span!("request", method = %request.method(), path, id)
}
