//! The XML of Pacemaker as a tree: its configuration, and the output of its tools. Both are data in attributes; comments
//! and processing instructions are dropped.

use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};
use quick_xml::{Reader, Writer, XmlVersion};

/// The deepest nesting that is read. Pacemaker's documents have about ten levels.
const MAX_DEPTH: usize = 64;

/// A text that is not the expected XML.
#[derive(Debug, thiserror::Error)]
pub enum XmlError {
    /// The parser's error.
    #[error("invalid XML: {0}")]
    Syntax(String),
    /// The text ends before its first element does.
    #[error("invalid XML: the document is incomplete")]
    Incomplete,
    /// Elements are nested deeper than any document of Pacemaker.
    #[error("invalid XML: more than {MAX_DEPTH} nested elements")]
    TooDeep,
}

/// An element, with its attributes in document order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    /// Its name.
    pub name: String,
    /// Its attributes, unescaped.
    pub attributes: Vec<(String, String)>,
    /// Its child elements.
    pub children: Vec<Element>,
    /// Its own text, unescaped, without white space at the ends.
    pub text: String,
}

impl Element {
    /// Returns an element with these attributes.
    pub fn new<const COUNT: usize>(name: &str, attributes: [(&str, &str); COUNT]) -> Self {
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Self { name: name.to_owned(), attributes, ..Self::default() }
    }

    /// Adds children.
    #[must_use]
    pub fn with(mut self, children: impl IntoIterator<Item = Element>) -> Self {
        self.children.extend(children);
        self
    }

    /// Returns the value of an attribute.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Sets an attribute.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.attributes.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => value.clone_into(known),
            None => self.attributes.push((name.to_owned(), value.to_owned())),
        }
    }

    /// Whether an attribute has the value `true`.
    pub fn is(&self, name: &str) -> bool {
        self.attribute(name) == Some("true")
    }

    /// Returns the children of this name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// Returns the element at this path of names; the first one if there are several.
    pub fn find(&self, path: &[&str]) -> Option<&Element> {
        path.iter().try_fold(self, |element, name| element.children.iter().find(|child| child.name == *name))
    }

    /// Returns the first child of this name, and adds one if there is none.
    pub fn child_mut(&mut self, name: &str) -> &mut Element {
        let at = self.children.iter().position(|child| child.name == name).unwrap_or_else(|| {
            self.children.push(Element::new(name, []));
            self.children.len() - 1
        });
        &mut self.children[at]
    }

    /// Calls `visit` for this element and everything in it, parents first.
    pub fn walk<'a>(&'a self, visit: &mut impl FnMut(&'a Element)) {
        visit(self);
        for child in &self.children {
            child.walk(visit);
        }
    }

    /// Parses a document.
    ///
    /// # Errors
    /// Returns [`XmlError`] if the text is not XML with one root element.
    pub fn parse(text: &str) -> Result<Self, XmlError> {
        let mut reader = Reader::from_str(text);
        let mut open: Vec<Element> = Vec::new();
        loop {
            let closed = match reader.read_event().map_err(syntax)? {
                Event::Start(start) => {
                    open.push(started(&start)?);
                    if open.len() > MAX_DEPTH {
                        return Err(XmlError::TooDeep);
                    }
                    continue;
                }
                Event::Empty(start) => started(&start)?,
                Event::End(_) => open.pop().ok_or(XmlError::Incomplete)?.without_indentation(),
                Event::Text(text) => {
                    if let Some(element) = open.last_mut() {
                        element.text.push_str(&text);
                    }
                    continue;
                }
                Event::GeneralRef(reference) => {
                    if let Some(element) = open.last_mut() {
                        element.text.push_str(&resolved(&reference)?);
                    }
                    continue;
                }
                Event::CData(text) => {
                    if let Some(element) = open.last_mut() {
                        element.text.push_str(&text);
                    }
                    continue;
                }
                Event::Eof => return Err(XmlError::Incomplete),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => continue,
            };
            match open.last_mut() {
                Some(parent) => parent.children.push(closed),
                None => return Ok(closed),
            }
        }
    }

    /// Removes the white space around the text, and between children.
    fn without_indentation(mut self) -> Self {
        self.text = self.text.trim().to_owned();
        self
    }

    /// Returns the document with two spaces per level, and a newline at the end.
    ///
    /// # Errors
    /// Writing to memory does not fail, but the writer reports errors.
    pub fn to_text(&self) -> Result<String, XmlError> {
        let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
        self.write(&mut writer).map_err(syntax)?;
        let text = String::from_utf8(writer.into_inner()).map_err(syntax)?;
        Ok(text + "\n")
    }

    fn write(&self, writer: &mut Writer<Vec<u8>>) -> std::io::Result<()> {
        let mut start = BytesStart::new(self.name.as_str());
        for (name, value) in &self.attributes {
            start.push_attribute((name.as_str(), value.as_str()));
        }
        if self.children.is_empty() && self.text.is_empty() {
            return writer.write_event(Event::Empty(start));
        }
        writer.write_event(Event::Start(start))?;
        if !self.text.is_empty() {
            writer.write_event(Event::Text(BytesText::new(&self.text)))?;
        }
        for child in &self.children {
            child.write(writer)?;
        }
        writer.write_event(Event::End(BytesEnd::new(self.name.as_str())))
    }
}

fn syntax(error: impl std::fmt::Display) -> XmlError {
    XmlError::Syntax(error.to_string())
}

fn started(start: &BytesStart<'_>) -> Result<Element, XmlError> {
    let mut element = Element { name: start.name().as_ref().to_owned(), ..Element::default() };
    for attribute in start.attributes() {
        let attribute = attribute.map_err(syntax)?;
        let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(syntax)?.into_owned();
        element.attributes.push((attribute.key.as_ref().to_owned(), value));
    }
    Ok(element)
}

/// Returns the characters of an entity in a text, such as `amp`.
fn resolved(reference: &str) -> Result<String, XmlError> {
    quick_xml::escape::unescape(&format!("&{reference};")).map(std::borrow::Cow::into_owned).map_err(syntax)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_whatever_the_values_contain() {
        let value = "a&b<c>d\"e'f ]]> &amp; ä";
        let element = Element::new("top", [("id", value)])
            .with([Element { text: value.to_owned(), ..Element::new("text", []) }, Element::new("empty", [])]);
        let text = element.to_text().unwrap();
        assert!(!text.contains(value), "{text}");
        assert_eq!(Element::parse(&text).unwrap(), element, "{text}");
    }

    #[test]
    fn broken_documents_are_errors() {
        let deep = "<a>".repeat(100);
        for text in ["", "<a>", "<a></b>", "<a b></a>", "<a b='1' b='2'/>", "</a>", "<a b='&nothing;'/>", &deep] {
            assert!(Element::parse(text).is_err(), "{text}");
        }
    }
}
