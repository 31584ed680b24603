//! One case per fixed bug: testdata/regress/<name> is read as manifests and rendered. <name>.expect holds the expected error, or `ok` and then
//! lines of the rules.

use std::fs;
use std::path::Path;

use sepal::cluster::Family;

use crate::common;

#[test]
fn found_bugs_stay_mended() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/regress");
    let mut checked = 0;
    for entry in fs::read_dir(folder).expect("testdata/regress is there") {
        let path = entry.expect("readable").path();
        if path.extension().is_some_and(|extension| extension == "expect") {
            continue;
        }
        let text = String::from_utf8_lossy(&fs::read(&path).expect("readable")).into_owned();
        let expected =
            fs::read_to_string(format!("{}.expect", path.display())).unwrap_or_else(|error| panic!("{}.expect: {error}", path.display()));
        let (expected, lines) = expected.trim_end().split_once('\n').unwrap_or((expected.trim_end(), ""));
        let mut rules = String::new();
        let found = match common::inputs(&text) {
            Ok(inputs) => {
                for family in Family::ALL {
                    rules += &common::rendered(&inputs, family);
                    assert!(rules.ends_with("COMMIT\n"), "{}", path.display());
                }
                "ok".to_owned()
            }
            Err(error) => error,
        };
        assert_eq!(found, expected, "{}", path.display());
        for line in lines.lines() {
            assert!(rules.lines().any(|rule| rule == line), "{}: {line} is not in\n{rules}", path.display());
        }
        checked += 1;
    }
    assert!(checked > 0, "no case was found");
}
