//! Metrics of requests to the API server.

use std::sync::Arc;

use sepal::kubernetes::api;
use sepal::kubernetes::client::{ConnectionSettings, Connections};
use sepal::observe::metrics::{Format, Metrics};

fn value(metrics: &Metrics, series: &str) -> Option<String> {
    let text = metrics.text(Format::Classic).1;
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned))
}

/// Requests are counted by host.
#[test]
fn requests_are_counted() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let server = sepal_apiserver::ApiServer::serve_objects(listener, Vec::new()).expect("it serves");
    let kubeconfig = tempfile::NamedTempFile::new().expect("writable");
    std::fs::write(kubeconfig.path(), server.kubeconfig()).expect("writable");
    let connection =
        ConnectionSettings { kubeconfig: Some(kubeconfig.path().display().to_string()), master: None, ..ConnectionSettings::default() };
    let metrics = Arc::new(Metrics::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let snapshot = runtime.block_on(async {
        let client = connection.observed_client(Arc::clone(&metrics) as _, &Connections::default()).expect("a client");
        api::snapshot(&client, "here").await.expect("an answer")
    });
    assert_eq!(snapshot.service_count(), 0);
    let host = server.address();
    assert_eq!(
        value(&metrics, &format!("rest_client_requests_total{{code=\"200\",host=\"{host}\",method=\"GET\"}}")).as_deref(),
        Some("3")
    );
    let timed = format!("rest_client_request_duration_seconds_count{{host=\"{host}\",verb=\"GET\"}}");
    assert_eq!(value(&metrics, &timed).as_deref(), Some("3"));
}
