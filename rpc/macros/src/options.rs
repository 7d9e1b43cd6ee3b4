//! What is written in `#[service(…)]` and `#[rpc(…)]`.

use std::time::Duration;

use syn::meta::ParseNestedMeta;
use syn::parse::{Parse, ParseStream, Parser};
use syn::{Attribute, Expr, LitStr, Token};

/// Of a service.
#[derive(Default)]
pub(crate) struct ServiceOptions {
    /// Put before each method's name on the wire, with a point between.
    pub(crate) name: Option<String>,
}

/// Of a method.
#[derive(Default)]
pub(crate) struct MethodOptions {
    pub(crate) name: Option<String>,
    pub(crate) is_idempotent: bool,
    pub(crate) is_notification: bool,
    pub(crate) is_inline: bool,
    pub(crate) timeout: Option<Duration>,
}

/// Of an argument.
#[derive(Default)]
pub(crate) struct ArgumentOptions {
    pub(crate) default: Option<DefaultValue>,
}

/// What an argument is that the caller left out.
pub(crate) enum DefaultValue {
    /// As its type has it.
    OfType,
    Value(Box<Expr>),
}

impl Parse for ServiceOptions {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut options = Self::default();
        let parser = syn::meta::parser(|meta| {
            if meta.path.is_ident("name") {
                options.name = Some(wire_name(&meta)?);
                return Ok(());
            }
            Err(meta
                .error("a service has one option: `name = \"…\"`, which is put before its methods' names on the wire"))
        });
        parser.parse2(input.parse()?)?;
        Ok(options)
    }
}

impl MethodOptions {
    /// Takes the `#[rpc(…)]` attributes out of `attributes`.
    pub(crate) fn take_from(attributes: &mut Vec<Attribute>) -> syn::Result<Self> {
        let mut options = Self::default();
        for attribute in attributes.extract_if(.., |attribute| attribute.path().is_ident("rpc")) {
            attribute.parse_nested_meta(|meta| options.read(&meta))?;
        }
        Ok(options)
    }

    fn read(&mut self, meta: &ParseNestedMeta<'_>) -> syn::Result<()> {
        let is_new = if meta.path.is_ident("idempotent") {
            !std::mem::replace(&mut self.is_idempotent, true)
        } else if meta.path.is_ident("notify") {
            !std::mem::replace(&mut self.is_notification, true)
        } else if meta.path.is_ident("inline") {
            !std::mem::replace(&mut self.is_inline, true)
        } else if meta.path.is_ident("default") {
            return Err(meta.error(
                "a default belongs to an argument: write it inside of the parentheses, before the argument's name",
            ));
        } else if meta.path.is_ident("name") {
            self.name.replace(wire_name(meta)?).is_none()
        } else if meta.path.is_ident("timeout") {
            self.timeout.replace(duration(&meta.value()?.parse()?)?).is_none()
        } else {
            return Err(meta.error(
                "a method has the options `idempotent`, `inline`, `notify`, `name = \"…\"` and `timeout = \"2s\"`, and no other",
            ));
        };
        if is_new { Ok(()) } else { Err(meta.error("this option is given twice")) }
    }
}

impl ArgumentOptions {
    /// Takes the `#[rpc(…)]` attributes out of `attributes`.
    pub(crate) fn take_from(attributes: &mut Vec<Attribute>) -> syn::Result<Self> {
        let mut options = Self::default();
        for attribute in attributes.extract_if(.., |attribute| attribute.path().is_ident("rpc")) {
            attribute.parse_nested_meta(|meta| options.read(&meta))?;
        }
        Ok(options)
    }

    fn read(&mut self, meta: &ParseNestedMeta<'_>) -> syn::Result<()> {
        if !meta.path.is_ident("default") {
            return Err(meta.error("an argument has the options `default` and `default = …`, and no other"));
        }
        let default = match meta.input.peek(Token![=]) {
            true => DefaultValue::Value(meta.value()?.parse()?),
            false => DefaultValue::OfType,
        };
        match self.default.replace(default) {
            None => Ok(()),
            Some(_) => Err(meta.error("this option is given twice")),
        }
    }
}

/// Prefix of names that belong to the protocol.
const RESERVED: &str = "$/";
/// Bytes of a method's name at most: what peers such as Neovim take.
pub(crate) const NAME_BYTES_MAX: usize = 100;

fn wire_name(meta: &ParseNestedMeta<'_>) -> syn::Result<String> {
    let literal: LitStr = meta.value()?.parse()?;
    let name = literal.value();
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(syn::Error::new(literal.span(), format!("a name has 1 to {NAME_BYTES_MAX} bytes")));
    }
    if name.starts_with(RESERVED) {
        return Err(syn::Error::new(literal.span(), "names that begin with `$/` belong to the protocol"));
    }
    Ok(name)
}

/// Reads `"2s"`, `"500ms"` or `"3m"`.
fn duration(literal: &LitStr) -> syn::Result<Duration> {
    const UNITS: [(&str, u64); 3] = [("ms", 1), ("s", 1000), ("m", 60_000)];
    let text = literal.value();
    let millis = UNITS.into_iter().find_map(|(unit, millis)| {
        let number: u64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        number.checked_mul(millis)
    });
    match millis {
        Some(0) => Err(syn::Error::new(literal.span(), "a timeout of zero would never let anything happen")),
        Some(millis) => Ok(Duration::from_millis(millis)),
        None => Err(syn::Error::new(
            literal.span(),
            "a timeout is a whole number with its unit: \"500ms\", \"2s\" or \"3m\"",
        )),
    }
}
