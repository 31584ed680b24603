//! Selects one page of a long list, filtered by a search word.

use serde_json::{Value, json};

/// The number of rows of a page.
pub(crate) const ROWS: usize = 50;

/// The page of a list that is requested.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageQuery {
    /// A part of the name in lower case. An empty text matches all names.
    pub search: String,
    /// The number of the page, from 0.
    pub page: usize,
}

impl PageQuery {
    /// Selects the page from items with a group and a name. The result has the `total` number of matches, `page`, `pages` and the `rows`.
    /// `row` is only called for these rows.
    pub fn select<'a, T>(&self, all: impl Iterator<Item = (&'a str, &'a str, T)>, row: impl FnMut(T) -> Value) -> Value {
        let mut found: Vec<T> = Vec::new();
        for (group, name, item) in all {
            if self.search.is_empty() || matches(&self.search, group, name) {
                found.push(item);
            }
        }
        let (total, pages) = (found.len(), found.len().div_ceil(ROWS).max(1));
        let page = self.page.min(pages - 1);
        let rows: Vec<Value> = found.into_iter().skip(page * ROWS).take(ROWS).map(row).collect();
        json!({"total": total, "page": page, "pages": pages, "rows": rows})
    }
}

/// True if `group/name`, or the name alone if the group is empty, contains the search word.
fn matches(search: &str, group: &str, name: &str) -> bool {
    let whole = if group.is_empty() { name.to_lowercase() } else { format!("{group}/{name}").to_lowercase() };
    whole.contains(search)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_selected_by_search_and_number() {
        let names: Vec<String> = (0..120).map(|number| format!("Web-{number:03}")).collect();
        let part = |search: &str, page| {
            let part = PageQuery { search: search.to_owned(), page };
            part.select(names.iter().map(|name| ("shop", name.as_str(), name)), |name| json!(name))
        };
        let all = part("", 1);
        assert_eq!((&all["total"], &all["pages"], &all["rows"][0]), (&json!(120), &json!(3), &json!("Web-050")));
        assert_eq!(part("", 99)["page"], 2, "the last page");
        let found = part("shop/web-11", 0);
        assert_eq!((&found["total"], &found["pages"]), (&json!(10), &json!(1)));
        assert_eq!(part("nothing", 3), json!({"total": 0, "page": 0, "pages": 1, "rows": []}));
    }
}
