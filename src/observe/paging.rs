//! One page of a long list, found by a word.

use serde_json::{Value, json};

/// Rows of a page.
pub const ROWS: usize = 50;

/// Which part of a list is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// What names have in them, in small letters; empty: all.
    pub search: String,
    /// The page, counted from 0.
    pub page: usize,
}

impl Part {
    /// That part of the named things: `total` that were found, `page`, `pages`, and the `rows`, of which only these are made.
    pub fn of<'a, T>(&self, all: impl Iterator<Item = (&'a str, &'a str, T)>, row: impl FnMut(T) -> Value) -> Value {
        let mut found: Vec<T> = Vec::new();
        for (group, name, thing) in all {
            if self.search.is_empty() || is_in(&self.search, group, name) {
                found.push(thing);
            }
        }
        let (total, pages) = (found.len(), found.len().div_ceil(ROWS).max(1));
        let page = self.page.min(pages - 1);
        let rows: Vec<Value> = found.into_iter().skip(page * ROWS).take(ROWS).map(row).collect();
        json!({"total": total, "page": page, "pages": pages, "rows": rows})
    }
}

/// Whether a word is in `group/name`, or in the name alone where there is no group.
fn is_in(search: &str, group: &str, name: &str) -> bool {
    let whole = if group.is_empty() { name.to_lowercase() } else { format!("{group}/{name}").to_lowercase() };
    whole.contains(search)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_found_by_a_word() {
        let names: Vec<String> = (0..120).map(|number| format!("Web-{number:03}")).collect();
        let part = |search: &str, page| {
            let part = Part { search: search.to_owned(), page };
            part.of(names.iter().map(|name| ("shop", name.as_str(), name)), |name| json!(name))
        };
        let all = part("", 1);
        assert_eq!((&all["total"], &all["pages"], &all["rows"][0]), (&json!(120), &json!(3), &json!("Web-050")));
        assert_eq!(part("", 99)["page"], 2, "the last one there is");
        let found = part("shop/web-11", 0);
        assert_eq!((&found["total"], &found["pages"]), (&json!(10), &json!(1)));
        assert_eq!(part("nothing", 3), json!({"total": 0, "page": 0, "pages": 1, "rows": []}));
    }
}
