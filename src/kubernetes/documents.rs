//! Parses multi-document YAML and JSON on all cores.
//!
//! The manifest of a large cluster has tens of megabytes. From `kubectl get -o yaml`, most of it is one document: a list. Such a list is cut
//! at its items, so that the pieces can be parsed in parallel. If a piece fails, the whole document is parsed, and that result counts.

use std::ops::Range;

use serde_json::Value;

use super::plain_yaml;
use crate::error_text::yaml_problem;
use crate::parallel;

/// The size of the portions that are parsed in parallel, in bytes.
const PORTION: usize = 64 * 1024;

/// A document that cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("document {document}, line {line}: {cause}")]
pub struct BadDocument {
    /// The number of the document in the text, from 1. Empty documents are not counted.
    pub document: usize,
    /// The line in the text, from 1.
    pub line: usize,
    /// What is wrong there.
    pub cause: String,
}

/// Parses all documents of a text and calls `make` with each value, in order. The items of a `kind: List` may be separate values.
///
/// # Errors
/// The first document that is neither YAML nor JSON.
pub fn parse<T: Send>(text: &str, make: impl Fn(Value) -> T + Sync) -> Result<Vec<T>, BadDocument> {
    let documents = split(text);
    let pieces: Vec<Piece<'_>> = documents.iter().flat_map(Document::pieces).collect();
    let mut results =
        parallel::map(&portions(&pieces), |portion| pieces[portion.clone()].iter().map(|piece| piece.parse(&make)).collect::<Vec<_>>());
    let mut results = results.iter_mut().flat_map(std::mem::take);
    let mut all = Vec::new();
    for document in &documents {
        let count = document.pieces().count();
        let of_document: Result<Vec<_>, _> = results.by_ref().take(count).collect();
        match of_document {
            Ok(values) => all.extend(values.into_iter().flatten()),
            Err(error) if count == 1 => return Err(error),
            Err(_) => all.extend(document.whole().parse(&make)?),
        }
    }
    Ok(all)
}

/// One document of a text.
struct Document<'a> {
    number: usize,
    /// The line in the text at which it starts, from 1.
    line: usize,
    text: &'a str,
    /// The portions of its items, with their lines, if it is a list as kubectl prints it.
    items: Vec<(usize, Range<usize>)>,
}

/// A text that can be parsed separately.
struct Piece<'a> {
    document: usize,
    line: usize,
    text: &'a str,
    /// True for items of a list, false for a document.
    items: bool,
}

/// Splits a text at its `---` lines and drops empty documents.
fn split(text: &str) -> Vec<Document<'_>> {
    let mut starts = vec![(1, 0, 0)];
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])) {
            starts.push((index + 1, offset, offset + "---".len()));
        }
        offset += line.len();
    }
    let ends = starts.iter().skip(1).map(|(_, separator, _)| *separator).chain([text.len()]);
    let parts = starts.iter().zip(ends).map(|((line, _, start), end)| (*line, &text[*start..end]));
    let with_content = parts.filter(|(_, part)| has_content(part)).enumerate();
    with_content.map(|(index, (line, text))| Document { number: index + 1, line, text, items: list_items(text) }).collect()
}

fn has_content(text: &str) -> bool {
    text.lines().map(str::trim).any(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with('%') && line != "...")
}

/// The items of a list in block style, in portions: line and range. `items:` must be at the left margin, and the dashes of all items at the
/// same column.
fn list_items(text: &str) -> Vec<(usize, Range<usize>)> {
    if text.len() < 2 * PORTION {
        return Vec::new();
    }
    let mut items: Vec<(usize, Range<usize>)> = Vec::new();
    let mut offset = 0;
    let mut section = Section::Before;
    let mut list = false;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let end = offset + line.len();
        list |= line.trim_end() == "kind: List";
        section = section.next(line);
        if let Section::Within { dashes } = section {
            let dash = line.as_bytes().get(dashes..dashes + 2) == Some(b"- ") && indentation(line) == dashes;
            match items.last_mut() {
                Some((_, range)) if !dash || range.len() < PORTION => range.end = end,
                _ if dash => items.push((index, offset..end)),
                _ => {}
            }
        }
        offset = end;
    }
    if list { items } else { Vec::new() }
}

/// The section of a document that a line belongs to.
#[derive(Clone, Copy)]
enum Section {
    /// Before the items.
    Before,
    /// After the line `items:`.
    Announced,
    /// Within the items, whose dashes are at this column.
    Within { dashes: usize },
    /// After the items.
    Behind,
}

impl Section {
    /// The section of the next line, which is this one.
    fn next(self, line: &str) -> Self {
        let column = indentation(line);
        let content = line[column..].trim_end();
        match self {
            Self::Before if line.trim_end() == "items:" => Self::Announced,
            // Blank lines and comments may have any indentation.
            Self::Announced | Self::Within { .. } if content.is_empty() || content.starts_with('#') => self,
            Self::Announced if content.starts_with("- ") => Self::Within { dashes: column },
            Self::Within { dashes } if column > dashes || (column == dashes && content.starts_with('-')) => self,
            Self::Announced | Self::Within { .. } => Self::Behind,
            Self::Before | Self::Behind => self,
        }
    }
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

impl<'a> Document<'a> {
    fn whole(&self) -> Piece<'a> {
        Piece { document: self.number, line: self.line, text: self.text, items: false }
    }

    fn pieces(&self) -> impl Iterator<Item = Piece<'a>> {
        let whole = self.items.is_empty().then(|| self.whole());
        let items = self.items.iter().map(|(line, range)| Piece {
            document: self.number,
            line: self.line + line,
            text: &self.text[range.clone()],
            items: true,
        });
        whole.into_iter().chain(items)
    }
}

impl Piece<'_> {
    fn parse<T>(&self, make: &impl Fn(Value) -> T) -> Result<Vec<T>, BadDocument> {
        let values = if self.text.trim_start().starts_with(['{', '[']) {
            // This may be YAML in flow style. If it is neither, JSON's error is the clearer one.
            self.json().or_else(|bad| self.yaml().map(|value| vec![value]).map_err(|_| bad))?
        } else {
            vec![self.yaml()?]
        };
        let flat = values.into_iter().flat_map(|value| match value {
            Value::Array(values) if self.items => values,
            value => vec![value],
        });
        flat.map(|value| {
            if value.is_object() || value.is_null() { Ok(make(value)) } else { Err(self.bad(1, "no mapping with apiVersion and kind")) }
        })
        .collect()
    }

    fn bad(&self, line: usize, cause: &str) -> BadDocument {
        BadDocument { document: self.document, line: self.line - 1 + line.max(1), cause: cause.to_owned() }
    }

    /// One JSON value or several in a row.
    fn json(&self) -> Result<Vec<Value>, BadDocument> {
        let values: serde_json::Result<_> = serde_json::Deserializer::from_str(self.text).into_iter().collect();
        values.map_err(|error| {
            let text = error.to_string();
            self.bad(error.line(), text.split(" at line ").next().unwrap_or(&text))
        })
    }

    fn yaml(&self) -> Result<Value, BadDocument> {
        if let Some(value) = plain_yaml::value(self.text) {
            return Ok(value);
        }
        // No size limits: the operator trusts the manifests, and those of a large cluster are large.
        let options = serde_saphyr::options! { budget: None };
        serde_saphyr::from_str_with_options(self.text, options).map_err(|error| {
            let line = error.location().map_or(1, |at| usize::try_from(at.line()).unwrap_or(1));
            self.bad(line, &yaml_problem(&error))
        })
    }
}

/// Groups pieces into portions of about [`PORTION`] bytes.
fn portions(pieces: &[Piece<'_>]) -> Vec<Range<usize>> {
    let mut portions: Vec<Range<usize>> = Vec::new();
    let mut size = PORTION;
    for (index, piece) in pieces.iter().enumerate() {
        if size >= PORTION {
            portions.push(index..index);
            size = 0;
        }
        if let Some(last) = portions.last_mut() {
            last.end = index + 1;
        }
        size += piece.text.len();
    }
    portions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Result<Vec<String>, String> {
        parse(text, |value| value["metadata"]["name"].as_str().unwrap_or_default().to_owned()).map_err(|bad| bad.to_string())
    }

    /// A List as kubectl prints it, but with indented items, and large enough to be parsed in pieces.
    fn large_list(indentation: usize, tail: &str) -> String {
        let item = |i: usize| {
            format!(
                "- apiVersion: v1\n  kind: Service\n  metadata:\n    name: s{i}\n    annotations:\n      text: |\n        - a\n        ---x\n"
            )
        };
        let items: String = (0..4000).map(item).chain([tail.to_owned()]).collect();
        let margin = " ".repeat(indentation);
        let items: String = items.split_inclusive('\n').map(|line| format!("{margin}{line}")).collect();
        format!("apiVersion: v1\nitems:\n# all there are\n\n{items}kind: List\nmetadata:\n  resourceVersion: \"\"\n")
    }

    #[test]
    fn documents_are_split_at_their_separators() {
        let text = "# only a comment\n---\nmetadata: {name: a}\n--- # next\nmetadata:\n  name: b\n...\n---\n---\n{\"metadata\": {\"name\": \"c\"}}{\"metadata\": {\"name\": \"d\"}}\n";
        assert_eq!(names(text), Ok(["a", "b", "c", "d"].map(String::from).to_vec()));
        assert_eq!(names(""), Ok(vec![]));
    }

    #[test]
    fn errors_name_document_and_line() {
        for (text, want) in [
            ("metadata: {name: a}\n---\n\nmetadata:\n  name: [\n", "document 2, line "),
            ("---\n---\na: 1\n---\nb: 'x\n", "document 2, line 5: unclosed quote"),
            ("{\"a\": 1,\n \"b\": }}\n", "document 1, line 2: expected value"),
            ("a: 1\n---\njust words\n", "document 2, line 2: no mapping with apiVersion and kind"),
        ] {
            let found = names(text).err().unwrap_or_else(|| panic!("accepted: {text}"));
            assert!(found.starts_with(want), "{found}");
        }
    }

    #[test]
    fn a_large_list_is_parsed_in_order() {
        for indentation in [0, 1, 2, 4] {
            let text = large_list(indentation, "");
            assert!(split(&text)[0].pieces().count() > 4, "it is cut");
            let found = names(&text).expect("a list");
            assert_eq!(found.len(), 4000);
            assert_eq!(found[3999], "s3999");
        }
    }

    #[test]
    fn a_large_list_with_an_error_names_its_line() {
        for indentation in [0, 2] {
            let text = large_list(indentation, "- kind: 'x\n");
            let line = text.lines().position(|line| line.trim() == "- kind: 'x").expect("the text has it") + 1;
            let found = names(&text).expect_err("a broken item");
            let named = found.trim_start_matches("document 1, line ").split(':').next().and_then(|n| n.parse().ok());
            let named: usize = named.expect("a line");
            assert!(named.abs_diff(line) <= 5, "{found}; it is line {line}");
        }
    }

    #[test]
    fn errors_name_the_line_once_and_no_function_of_the_parser() {
        for (text, want) in [
            (
                "metadata: {name: a}\n...\nmetadata: {name: b}\n",
                "document 1, line 3: only single YAML document expected but multiple found",
            ),
            ("{\"a\": [1, 2}\n", "document 1, line 1: expected `,` or `]`"),
        ] {
            assert_eq!(names(text).expect_err(text), want);
        }
    }

    /// Comments and odd indentation between the items do not change the result.
    #[test]
    fn a_list_with_irregular_items_is_parsed_whole() {
        for (indentation, tail, more) in [
            (2, "# a comment\n\n- metadata: {name: last}\n", 1),
            (2, "- metadata:\n    name: last\n    annotations: {text: 'a\n\n      - b'}\n", 1),
            (0, "-\n  metadata: {name: last}\n", 1),
            (1, "- metadata: {name: last}\n- metadata: {name: more}\n", 2),
        ] {
            let found = names(&large_list(indentation, tail)).expect("a list");
            assert_eq!(found.len(), 4000 + more, "{tail}");
            assert_eq!(found[4000], "last");
        }
        let nested = large_list(2, "").replace("kind: List", "other: {items: []}\nkind: List");
        assert_eq!(names(&nested).map(|names| names.len()), Ok(4000));
    }
}
