//! The status page in a real browser: its content for a running program, on a screen and on a phone, light and dark, and with names that look
//! like markup. `SEPAL_PICTURES=folder` keeps the screenshots there.

use std::io::Cursor;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use sepal_lab::{Cluster, Families, Layout, NAMESPACE_FLAGS, Netns, PodCluster, PodNode, Running, http, wait_until_within};
use serde_json::{Value, json};

use crate::SEPAL;
use crate::api_node::ApiNode;
use crate::browser::Browser;

const PAGE: &str = "http://127.0.0.1:10249/";
const SCREEN: (u32, u32) = (1200, 900);
const PHONE: (u32, u32) = (360, 740);
/// A name with effects if the page used it as markup.
const MARKUP: &str = "<img src=x onerror=document.body.dataset.owned=1><b>bold</b>";

/// A node on which sepal is ready.
struct Lab {
    node: ApiNode,
    _sepal: Running,
}

impl Lab {
    fn new(objects: Vec<Value>) -> Self {
        let node = ApiNode::new(Netns::new(), objects);
        let mut command = node.netns.command(SEPAL);
        command.arg("run").args(NAMESPACE_FLAGS).args(["--hostname-override=bench", "--iptables-variant=nft"]);
        command.env("KUBECONFIG", node.path("kubeconfig")).stdin(Stdio::null()).stderr(Stdio::null());
        let sepal = Running(command.spawn().expect("it starts"));
        let lab = Self { node, _sepal: sepal };
        wait_until_within(Duration::from_secs(180), "rules are in force", || {
            http::get(&lab.node.netns, ([127, 0, 0, 1], 10256).into(), "/readyz").is_ok_and(|answer| answer.status == 200)
        });
        lab
    }
}

/// Reads a screenshot: width, height, brightness of the background from 0 to 255, and number of colours.
fn looked_at(name: &str, png: &[u8]) -> (u32, u32, u8, usize) {
    if let Ok(folder) = std::env::var("SEPAL_PICTURES") {
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), png).expect("writable");
    }
    let mut decoder = png::Decoder::new(Cursor::new(png));
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let mut reader = decoder.read_info().expect("a picture");
    let mut pixels = vec![0; reader.output_buffer_size().expect("it fits")];
    let info = reader.next_frame(&mut pixels).expect("a picture");
    let samples = info.color_type.samples();
    let colours: std::collections::HashSet<&[u8]> = pixels.chunks_exact(samples).map(|pixel| &pixel[..3]).collect();
    let corner: u32 = pixels[..3].iter().map(|value| u32::from(*value)).sum();
    (info.width, info.height, u8::try_from(corner / 3).expect("a mean"), colours.len())
}

#[test]
fn the_page_shows_what_is_there_and_follows() {
    let lab = Lab::new(Cluster::new(3, 2).objects().collect());
    let mut browser = Browser::start(&lab.node.netns);
    browser.open(&format!("{PAGE}?service=bench/svc-00001&from=node&to=svc/bench/svc-00001"), SCREEN, false);
    browser.wait("the Services are listed", "document.querySelectorAll('#services tbody tr').length === 3");
    browser.wait("the parts are shown", "document.querySelector('#parts').innerText.includes('proxy-ipv4 ready')");
    browser.wait("the chains are drawn", "document.querySelectorAll('#one svg rect').length >= 6");
    browser.wait("the path is shown", "document.querySelector('#way').innerText.includes('50 %: to 10.12')");
    browser.wait("it is live", "document.querySelector('#live').innerText === 'live'");
    assert_eq!(browser.value("document.title"), "sepal on bench");
    let drawn = browser.value("document.querySelector('#one svg').textContent").to_string();
    assert!(drawn.contains("KUBE-SERVICES") && drawn.contains("50 %") && drawn.contains("cluster IP"), "{drawn}");

    // The page is not blank, and not wider than the screen.
    for (name, size, dark) in
        [("screen", SCREEN, false), ("screen-dark", SCREEN, true), ("phone", PHONE, false), ("phone-dark", PHONE, true)]
    {
        browser.open(&format!("{PAGE}?service=bench/svc-00001&from=node&to=svc/bench/svc-00001"), size, dark);
        browser.wait("the chains are drawn", "document.querySelectorAll('#one svg rect').length >= 6");
        browser.wait("the path is shown", "document.querySelector('#way').innerText.includes('50 %')");
        browser.wait("the page scrolls in one direction only", "document.documentElement.scrollWidth <= window.innerWidth");
        let (width, height, background, colours) = looked_at(name, &browser.picture());
        assert!(width == size.0 && height >= size.1, "{name}: {width}x{height}");
        assert!(if dark { background < 60 } else { background > 200 }, "{name}: {background}");
        assert!(colours > 50, "{name}: {colours} colours are no page");
    }

    // Changes appear without a reload.
    browser.open(PAGE, SCREEN, false);
    browser.wait("it is live", "document.querySelector('#live').innerText === 'live'");
    lab.node.server.put(Cluster::slice(2, &[])).expect("a slice");
    browser.wait("an endpoint has gone", "document.querySelector('#services').innerText.includes('ipv4 0 of 0')");
    browser.wait("the written rules are shown", "document.querySelector('#log').innerText.includes('bench/svc-00002')");
    browser.wait("the causes of the wait are shown", "document.querySelector('#slow').innerText.includes('restore')");

    assert_eq!(browser.complaints, Vec::<String>::new());
}

/// API servers accept no name with markup, and sepal refuses such Services. The page does not rely on that: here every text that it gets begins
/// with markup, and one Service has such a name.
#[test]
fn names_are_text_whatever_they_are() {
    let named = |name: &str| {
        let mut service = Cluster::service(7);
        service["metadata"]["name"] = json!(name);
        service
    };
    let lab = Lab::new(Cluster::new(3, 2).objects().chain([named(MARKUP)]).collect());
    let mut browser = Browser::start(&lab.node.netns);
    browser.open(PAGE, SCREEN, false);
    browser.wait("the Services are listed", "document.querySelectorAll('#services tbody tr').length === 3");
    browser.value(&format!(
        "(() => {{
            const real = window.fetch;
            const marked = (it) => typeof it === 'string' ? {markup} + it : Array.isArray(it) ? it.map(marked)
                : it && typeof it === 'object' ? Object.fromEntries(Object.entries(it).map(([key, value]) => [key, marked(value)])) : it;
            window.fetch = async (...all) => {{
                const answer = await real(...all), value = marked(await answer.json());
                return {{ ok: answer.ok, json: async () => value }};
            }};
            document.getElementById('to').value = 'svc/bench/svc-00001';
            open('bench', 'svc-00001');
            explain();
            news();
        }})()",
        markup = json!(MARKUP)
    ));
    for (place, count) in [("#services tbody", 3 * 4), ("#one-body", 10), ("#parts", 4), ("#log tbody", 2), ("#way", 1), ("#node", 1)] {
        let shown = format!("document.querySelector('{place}').textContent.split({}).length > {count}", json!(MARKUP));
        browser.wait(&format!("markup is text in {place}"), &shown);
    }
    assert_eq!(browser.value("document.querySelectorAll('body img, body b').length"), 0);
    assert_eq!(browser.value("document.body.dataset.owned"), Value::Null);
    assert_eq!(browser.complaints, Vec::<String>::new());

    // The content security policy stops scripts in inserted markup.
    browser.value(&format!("document.body.append(document.createRange().createContextualFragment({}))", json!(MARKUP)));
    browser.wait("it is there", "document.querySelectorAll('body img').length === 1");
    let forbidden = |browser: &Browser| browser.complaints.iter().filter(|complaint| complaint.contains("Content Security Policy")).count();
    let start = std::time::Instant::now();
    while forbidden(&browser) < 2 && start.elapsed() < Duration::from_secs(60) {
        browser.value("new Promise((done) => setTimeout(done, 50))");
    }
    assert!(forbidden(&browser) >= 2, "neither the picture nor its script: {:?}", browser.complaints);
    assert_eq!(browser.value("document.body.dataset.owned"), Value::Null);
}

/// The page is accessible by screen reader and keyboard.
#[test]
fn the_page_can_be_read_aloud() {
    let lab = Lab::new(Cluster::new(3, 2).objects().collect());
    let mut browser = Browser::start(&lab.node.netns);
    browser.open(&format!("{PAGE}?service=bench/svc-00001"), SCREEN, false);
    browser.wait("the chains are drawn", "document.querySelectorAll('#one svg rect').length >= 6");
    browser.wait("the Services are listed", "document.querySelectorAll('#services tbody tr').length === 3");
    let tree = browser.call("Accessibility.getFullAXTree", json!({}));
    let nodes = tree["nodes"].as_array().expect("nodes");
    let named = |role: &str| -> Vec<&str> {
        let of_role = nodes.iter().filter(|node| node["ignored"] == json!(false) && node["role"]["value"] == role);
        of_role.map(|node| node["name"]["value"].as_str().unwrap_or_default()).collect()
    };
    for (role, wanted) in [
        ("heading", "Services"),
        ("searchbox", "Namespace or name"),
        ("button", "bench/svc-00001"),
        ("columnheader", "Endpoints ready"),
        ("textbox", "To: IP:PORT or svc/NAMESPACE/NAME[:PORT]"),
    ] {
        assert!(named(role).contains(&wanted), "{role}: {:?}", named(role));
    }
    for role in ["button", "textbox", "searchbox", "region", "image", "heading"] {
        assert!(named(role).iter().all(|name| !name.is_empty()), "a {role} has no name: {:?}", named(role));
    }
    assert_eq!(browser.value("document.activeElement.id"), "one-title", "what was opened is where one reads on");
    assert_eq!(browser.complaints, Vec::<String>::new());
}

/// The page shows reached peers and refused Nodes.
#[test]
fn peers_are_on_the_map() {
    let cluster = PodCluster::new(Path::new(SEPAL), Layout::vxlan(3, Families::V4));
    for node in &cluster.nodes {
        node.start(&[]);
    }
    cluster.nodes.iter().for_each(PodNode::wait_ready);
    let mut stranger = cluster.layout.node(4);
    stranger["spec"] = json!({"podCIDR": "10.99.0.0/24", "podCIDRs": ["10.99.0.0/24"]});
    stranger["metadata"]["annotations"] = cluster.node(3)["metadata"]["annotations"].clone();
    cluster.server.put(stranger).expect("a Node");
    let mut browser = Browser::start(&cluster.nodes[0].netns);
    browser.open(PAGE, SCREEN, false);
    browser.wait("all peers are reported", "document.querySelector('#peers-note').textContent === '2 accepted, 1 refused, 0 failed'");
    browser.wait("the peers are drawn on the map", "document.querySelectorAll('#map svg path.programmed').length === 2 && document.querySelectorAll('#map svg path.refused').length === 1");
    let table = browser.value("document.querySelector('#peers').innerText").to_string();
    for wanted in ["node-2", "10.244.2.0/24", "192.168.77.3", "node-4", "not in"] {
        assert!(table.contains(wanted), "{wanted}: {table}");
    }
    browser.wait("the pod network's parts are shown", "document.querySelector('#parts').innerText.includes('peers ready')");
    let (width, _, _, colours) = looked_at("peers", &browser.picture());
    assert!(width == SCREEN.0 && colours > 50);
    assert_eq!(browser.complaints, Vec::<String>::new());
}

#[test]
fn ten_thousand_services_are_paged() {
    let lab = Lab::new(Cluster::new(10_000, 1).objects().collect());
    let mut browser = Browser::start(&lab.node.netns);
    browser.open(PAGE, SCREEN, false);
    browser.wait("they are counted", "document.querySelector('#services-note').textContent === '10000 found'");
    let rows = "document.querySelectorAll('#services tbody tr').length";
    assert_eq!(browser.value(rows), 50);
    let whole = browser.value("performance.getEntriesByType('resource').reduce((sum, it) => sum + it.encodedBodySize, 0)");
    assert!(whole.as_u64().is_some_and(|bytes| bytes < 200_000), "{whole} bytes for a page of 50");
    browser.value("document.querySelectorAll('#services-pager button')[1].click()");
    browser.wait("the next page", "document.querySelector('#services-pager span').textContent === '2 of 200'");
    browser.wait("is another one", "document.querySelector('#services tbody').innerText.includes('svc-00050')");
    browser.value(
        "(() => { const field = document.getElementById('search'); field.value = 'SVC-0999'; field.dispatchEvent(new Event('input')); })()",
    );
    browser.wait("ten are found", "document.querySelector('#services-note').textContent === '10 found'");
    assert_eq!(browser.value(rows), 10);
    assert_eq!(browser.value("location.search"), "?search=SVC-0999");
    assert_eq!(browser.complaints, Vec::<String>::new());
}
