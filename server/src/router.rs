//! The router: what is around every route, and their description.

use std::{
    any::Any,
    collections::btree_map::Entry,
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
};
use tokio::time::timeout;
use tower_http::{catch_panic::CatchPanicLayer, trace::TraceLayer};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ComponentsBuilder, Content, InfoBuilder, Object, OneOfBuilder, OpenApi, OpenApiBuilder,
        Ref, RefOr, ResponseBuilder, Schema, Type,
        path::{self, ParameterBuilder, ParameterIn, PathItem},
        security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};
use wattle_mesh::access::Action;
use wattle_wire::{
    admin::{DryRun, LinkEffects, SomeLinks, Warning},
    problem::{ErrorCode, Holder, PROBLEM_JSON, ProblemDetails},
};

use crate::{
    error,
    http::{
        audience::{RouteAudience, only},
        auth::{self, RequestId},
        preconditions::{self, ActionRoutes},
        ui,
    },
    routes::{self, metrics},
    state::app::App,
};

/// Position of the cache from which an answer was read.
const POSITION: HeaderName = HeaderName::from_static("wattle-position");
/// How long a request may take, its body included; more than the database's own limits together.
const LONGEST_REQUEST: Duration = Duration::from_secs(8);
/// What bodies are, but for problems.
const JSON: &str = "application/json";
/// The longest path that is logged.
const LONGEST_PATH: usize = 200;

/// The routes that are for an action: those of the resources, and their description.
fn routes_for(action: Action) -> OpenApiRouter<App> {
    let of_resources = routes::for_action(action);
    match action {
        Action::Ask => of_resources.routes(routes!(show_openapi)),
        Action::Read | Action::Change | Action::Grant | Action::Configure | Action::TakePart => {
            of_resources
        }
    }
}

/// The router of a listener, with everything around it.
pub fn router(app: App, audiences: Vec<RouteAudience>) -> Router {
    let mut all: Router<App> = ui::routes();
    // What a route documents is what it takes.
    let forced = table()
        .into_iter()
        .filter(|operation| operation.can_be_forced);
    let forced: Arc<[_]> = forced
        .map(|operation| (operation.method, operation.path))
        .collect();
    for action in Action::ALL {
        let routes: Router<App> = routes_for(action).into();
        let of_action = ActionRoutes {
            action,
            forced: Arc::clone(&forced),
        };
        let routes = routes.route_layer(from_fn_with_state(of_action, preconditions::read));
        all = all.merge(match action {
            Action::Ask => routes,
            Action::Read
            | Action::Change
            | Action::Grant
            | Action::Configure
            | Action::TakePart => {
                routes.route_layer(from_fn_with_state((app.clone(), action), auth::enter))
            }
        });
    }
    all.fallback(async || error::respond(&error::not_found("path")))
        .method_not_allowed_fallback(async || error::respond(&error::method_not_allowed()))
        .layer(from_fn_with_state(Arc::from(audiences), only))
        .layer(from_fn_with_state(app.clone(), metrics::counted))
        .layer(from_fn_with_state(app.clone(), with_position))
        .layer(CatchPanicLayer::custom(answer_panic))
        .layer(from_fn(limited))
        .layer(TraceLayer::new_for_http().make_span_with(span))
        .layer(from_fn(auth::with_request_id))
        .with_state(app)
}

/// An operation of the interface, and the action that it is.
#[derive(Clone, Debug)]
pub struct Operation {
    pub method: &'static str,
    pub path: String,
    pub action: Action,
    /// Whether it takes `?force=true`.
    pub can_be_forced: bool,
}

/// Every operation.
pub fn table() -> Vec<Operation> {
    let rows = Action::ALL.into_iter().flat_map(|action| {
        let paths = routes_for(action).into_openapi().paths.paths;
        paths.into_iter().flat_map(move |(path, item)| {
            methods(item).map(move |(method, operation)| Operation {
                method,
                path: path.clone(),
                action,
                can_be_forced: takes_force(&operation),
            })
        })
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
                .schema(ProblemDetails::name(), ProblemDetails::schema())
                .schema(ErrorCode::name(), ErrorCode::schema())
                .schema(Holder::name(), Holder::schema())
                .schema(DryRun::name(), DryRun::schema())
                .schema(LinkEffects::name(), LinkEffects::schema())
                .schema(SomeLinks::name(), SomeLinks::schema())
                .schema(Warning::name(), Warning::schema())
                .security_scheme(
                    "api_token",
                    SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)),
                )
                .security_scheme(
                    "node",
                    SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)),
                )
                .build(),
        ))
        .build();
    for action in Action::ALL {
        let mut part = routes_for(action).into_openapi();
        let scheme = match action {
            Action::Ask => None,
            Action::Read | Action::Change | Action::Grant | Action::Configure => Some("api_token"),
            Action::TakePart => Some("node"),
        };
        for (path, item) in &mut part.paths.paths {
            name_operations(path, item);
        }
        if scheme == Some("api_token") {
            part.paths.paths.values_mut().for_each(document_options);
        }
        for operation in part.paths.paths.values_mut().flat_map(operations) {
            operation.security =
                scheme.map(|scheme| vec![SecurityRequirement::new(scheme, Vec::<String>::new())]);
            let problem = Content::new(Some(Ref::from_schema_name("ProblemDetails")));
            let problem = ResponseBuilder::new()
                .description("What was wrong, and what to do about it")
                .content(PROBLEM_JSON, problem);
            operation
                .responses
                .responses
                .insert("default".to_owned(), problem.build().into());
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

/// This description of the interface.
#[utoipa::path(get, path = "/openapi.json", tag = "coordinator", responses((status = 200, body = Object)))]
pub async fn show_openapi() -> Response {
    // Anybody may ask: it is written once, and shared.
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| openapi_json().into());
    ([(header::CONTENT_TYPE, JSON)], TEXT.clone()).into_response()
}

/// Names each operation after its method and path: `get_sites_site`. Names of functions are unique
/// in their module only.
fn name_operations(path: &str, item: &mut PathItem) {
    let path: Vec<_> = path
        .split(['/', '-', '.', '{', '}'])
        .filter(|word| !word.is_empty())
        .collect();
    let operations = [
        ("get", &mut item.get),
        ("post", &mut item.post),
        ("patch", &mut item.patch),
        ("put", &mut item.put),
        ("delete", &mut item.delete),
    ];
    for (method, operation) in operations {
        if let Some(operation) = operation {
            operation.operation_id = Some(format!("{method}_{}", path.join("_")));
        }
    }
}

/// Documents how the changes of a path can be asked for.
fn document_options(item: &mut PathItem) {
    let changes = [
        (&mut item.post, true),
        (&mut item.patch, false),
        (&mut item.put, false),
        (&mut item.delete, false),
    ];
    for (operation, is_post) in changes
        .into_iter()
        .filter_map(|(operation, is_post)| Some((operation.as_mut()?, is_post)))
    {
        let parameter = |name: &str, place: ParameterIn, kind: Type, description: &str| {
            ParameterBuilder::new()
                .name(name)
                .parameter_in(place)
                .schema(Some(Object::with_type(kind)))
                .description(Some(description))
                .build()
        };
        let dry_run = "true: nothing is done; the answer is 200 with a `DryRun`, or the problem \
            that the change would meet";
        let own = if is_post {
            let description = "drawn for this request: whoever sends the same again within a day \
                gets the same answer, and nothing is done twice";
            parameter(
                "Idempotency-Key",
                ParameterIn::Header,
                Type::String,
                description,
            )
        } else {
            let description =
                "the `ETag` with which the object was read: 412 if it is another by now";
            parameter("If-Match", ParameterIn::Header, Type::String, description)
        };
        operation.parameters.get_or_insert_default().extend(
            [
                parameter("dry_run", ParameterIn::Query, Type::Boolean, dry_run),
                own,
            ]
            .map(Into::into),
        );
        let responses = &mut operation.responses.responses;
        let dry_run = RefOr::from(Ref::from_schema_name("DryRun"));
        match responses.entry("200".to_owned()) {
            Entry::Vacant(vacant) => {
                let answer = ResponseBuilder::new()
                    .description("What a dry run would do")
                    .content(JSON, Content::new(Some(dry_run)));
                vacant.insert(answer.build().into());
            }
            Entry::Occupied(mut occupied) => {
                if let RefOr::T(answer) = occupied.get_mut()
                    && let Some(RefOr::T(content)) = answer.content.get_mut(JSON)
                    && let Some(schema) = content.schema.take()
                {
                    let either = OneOfBuilder::new().item(schema).item(dry_run);
                    content.schema = Some(Schema::from(either).into());
                }
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut path::Operation> {
    [
        &mut item.get,
        &mut item.post,
        &mut item.patch,
        &mut item.put,
        &mut item.delete,
    ]
    .into_iter()
    .flatten()
}

fn methods(item: PathItem) -> impl Iterator<Item = (&'static str, path::Operation)> {
    let methods = [
        ("GET", item.get),
        ("POST", item.post),
        ("PATCH", item.patch),
        ("PUT", item.put),
        ("DELETE", item.delete),
    ];
    methods
        .into_iter()
        .filter_map(|(method, operation)| Some((method, operation?)))
}

fn takes_force(operation: &path::Operation) -> bool {
    let mut parameters = operation.parameters.iter().flatten();
    parameters.any(|parameter| matches!(parameter, RefOr::T(known) if known.name == "force"))
}

/// Gives up requests that take too long: a slow body, for one. Of a stream, the beginning of its
/// answer counts.
async fn limited(request: Request, next: Next) -> Response {
    match timeout(LONGEST_REQUEST, next.run(request)).await {
        Ok(response) => response,
        Err(_) => error::respond(&error::too_slow(LONGEST_REQUEST)),
    }
}

async fn with_position(State(app): State<App>, request: Request, next: Next) -> Response {
    // What is read is at least as new as the cache was before, and what is written is there
    // afterwards.
    let before = app.mesh_cache.position();
    let reads = request.method().is_safe();
    let mut response = next.run(request).await;
    let position = if reads {
        before
    } else {
        app.mesh_cache.position()
    };
    if let Ok(position) = HeaderValue::from_str(&position.to_string()) {
        response.headers_mut().insert(POSITION, position);
    }
    response.headers_mut().insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

fn answer_panic(_: Box<dyn Any + Send>) -> Response {
    error::respond(&error::internal())
}

/// Paths hold names and ids, never secrets; queries, headers and bodies are not logged.
fn span(request: &Request) -> tracing::Span {
    let id = request
        .extensions()
        .get::<RequestId>()
        .map(|id| id.0.as_str());
    let path: String = request.uri().path().chars().take(LONGEST_PATH).collect();
    tracing::info_span!("request", method = %request.method(), path, id)
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered_like_every_other_fault() {
        let router = Router::new()
            .route("/", get(async || -> () { panic!("secret detail") }))
            .layer(CatchPanicLayer::custom(answer_panic));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, router).into_future());
        let answer = reqwest::get(url).await.unwrap();
        assert_eq!(answer.status(), 500);
        let problem: ProblemDetails = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!(problem, error::internal());
    }

    #[test]
    fn each_operation_has_a_name_of_its_own() {
        let api = openapi();
        let mut ids: Vec<_> = api
            .paths
            .paths
            .values()
            .flat_map(|item| [&item.get, &item.post, &item.patch, &item.put, &item.delete])
            .flatten()
            .filter_map(|operation| operation.operation_id.clone())
            .collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), table().len());
    }
}
