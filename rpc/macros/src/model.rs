//! A service as its trait describes it, or a sentence that says what cannot be a service and what to write instead.

use quote::ToTokens;
use syn::{
    Attribute, FnArg, GenericArgument, Ident, ItemTrait, Pat, Path, PathArguments, Receiver, ReceiverKind, ReturnType,
    Safety, Signature, TraitItem, TraitItemFn, Type, Visibility,
};

use crate::options::{ArgumentOptions, DefaultValue, MethodOptions, NAME_BYTES_MAX, ServiceOptions};

/// Arguments of a method at most: as many as a handler can have. More belong into a struct.
const ARGUMENTS_MAX: usize = 8;
/// Functions that each client has beside the methods.
const CLIENTS_OWN: [&str; 3] = ["client", "connect", "new"];

pub(crate) struct Service {
    pub(crate) visibility: Visibility,
    pub(crate) ident: Ident,
    pub(crate) name: Option<String>,
    pub(crate) methods: Vec<Method>,
}

pub(crate) struct Method {
    pub(crate) ident: Ident,
    /// What the client's method has, too: documentation, and what the compiler is told of its use.
    pub(crate) attributes: Vec<Attribute>,
    /// When it is there.
    pub(crate) conditions: Vec<Attribute>,
    /// On the wire.
    pub(crate) name: String,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) outcome: Outcome,
    pub(crate) options: MethodOptions,
}

pub(crate) struct Argument {
    pub(crate) ident: Ident,
    /// As the trait has it.
    pub(crate) ty: Type,
    pub(crate) form: Form,
    /// Whether it is an `Option<_>` around what has the form.
    pub(crate) is_optional: bool,
    /// What the method gets instead of nil.
    pub(crate) default: Option<DefaultValue>,
}

/// How a value travels.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    /// By its own `Serialize`.
    Plain,
    /// A `Vec<u8>`: as bytes, which serde would send as numbers.
    Bytes,
    /// A `&str`.
    BorrowedText,
    /// A `&[u8]`.
    BorrowedBytes,
}

pub(crate) enum Outcome {
    /// Answered with a value or an error.
    Answer { value: Box<Type>, error: Box<Type>, form: Form, is_optional: bool },
    /// Not answered.
    Nothing,
}

impl Service {
    /// Reads the trait, and takes our attributes out of it.
    pub(crate) fn of(definition: &mut ItemTrait, options: ServiceOptions) -> syn::Result<Self> {
        if !definition.generics.params.is_empty() {
            return Err(error(&definition.generics, "a service is one set of methods and takes no parameters"));
        }
        let mut service = Self {
            visibility: definition.vis.clone(),
            ident: definition.ident.clone(),
            name: options.name,
            methods: Vec::new(),
        };
        let mut faults = None;
        for item in &mut definition.items {
            match service.read(item) {
                Ok(method) => service.methods.push(method),
                Err(fault) => combine(&mut faults, fault),
            }
        }
        if let Some(fault) = service.fault_of_names() {
            combine(&mut faults, fault);
        }
        faults.map_or(Ok(service), Err)
    }

    fn read(&self, item: &mut TraitItem) -> syn::Result<Method> {
        match item {
            TraitItem::Fn(function) => Method::of(function, self.name.as_deref()),
            other => Err(error(other, "a service has methods only: types and constants do not travel")),
        }
    }

    fn fault_of_names(&self) -> Option<syn::Error> {
        let mut rest = self.methods.iter();
        while let Some(method) = rest.next() {
            if let Some(twin) = rest.clone().find(|other| other.name == method.name) {
                return Some(error(&twin.ident, &format!("two methods are called {:?} on the wire", twin.name)));
            }
        }
        None
    }
}

impl Method {
    fn of(function: &mut TraitItemFn, service: Option<&str>) -> syn::Result<Self> {
        let options = MethodOptions::take_from(&mut function.attrs)?;
        let of_arguments = function.sig.inputs.iter_mut().map(take_options).collect::<syn::Result<Vec<_>>>()?;
        check_signature(&function.sig)?;
        if let Some(body) = &function.default {
            return Err(error(body, "a method of a service has no body here: what it does is up to the server"));
        }
        let mut inputs = function.sig.inputs.iter().zip(of_arguments);
        match inputs.next() {
            Some((FnArg::Receiver(Receiver { kind: ReceiverKind::Reference(_, _, None), .. }), _)) => {}
            _ => {
                return Err(error(
                    &function.sig.ident,
                    "a method takes `&self`: many calls run at once, each in a dhaga",
                ));
            }
        }
        let arguments = inputs.map(Argument::of).collect::<syn::Result<Vec<_>>>()?;
        check_defaults(&arguments)?;
        if arguments.len() > ARGUMENTS_MAX {
            let text = format!("a method has {ARGUMENTS_MAX} arguments at most: put them into a struct");
            return Err(error(&function.sig.inputs, &text));
        }
        let outcome = Outcome::of(&function.sig, &options)?;
        let ident = function.sig.ident.clone();
        if CLIENTS_OWN.iter().any(|own| ident == own) {
            let text = format!(
                "the client has a `{ident}` of its own: give the method another name, and the peer this one \
                by `#[rpc(name = \"{ident}\")]`"
            );
            return Err(error(&ident, &text));
        }
        let own_name = options.name.clone().unwrap_or_else(|| unraw(&ident));
        let name = service.map_or_else(|| own_name.clone(), |service| format!("{service}.{own_name}"));
        if name.len() > NAME_BYTES_MAX {
            let text = format!(
                "on the wire this is {name:?}, of {} bytes, and a name has {NAME_BYTES_MAX} at most: shorten it by \
                `#[rpc(name = \"…\")]`",
                name.len()
            );
            return Err(error(&ident, &text));
        }
        Ok(Self {
            attributes: attributes_of(function, &["doc", "deprecated", "must_use"]),
            conditions: attributes_of(function, &["cfg"]),
            name,
            ident,
            arguments,
            outcome,
            options,
        })
    }
}

fn attributes_of(function: &TraitItemFn, names: &[&str]) -> Vec<Attribute> {
    let is_named = |attribute: &&Attribute| names.iter().any(|name| attribute.path().is_ident(name));
    function.attrs.iter().filter(is_named).cloned().collect()
}

fn check_signature(signature: &Signature) -> syn::Result<()> {
    if let Some(word) = &signature.asyncness {
        return Err(error(word, "no `async` here: a method is plain code, and whatever waits in it parks its dhaga"));
    }
    if let Safety::Unsafe(word) = &signature.safety {
        return Err(error(word, "a peer cannot promise what an `unsafe` method asks for"));
    }
    if !signature.generics.params.is_empty() {
        return Err(error(&signature.generics, "the types of a method must be known: it cannot be generic"));
    }
    Ok(())
}

/// Takes our attributes out of an argument: the compiler knows none of them.
fn take_options(input: &mut FnArg) -> syn::Result<ArgumentOptions> {
    match input {
        FnArg::Typed(typed) => ArgumentOptions::take_from(&mut typed.attrs),
        FnArg::Receiver(receiver) => match receiver.attrs.iter().find(|attribute| attribute.path().is_ident("rpc")) {
            Some(attribute) => {
                Err(error(attribute, "`&self` does not travel: options of the method stand above its `fn`"))
            }
            None => Ok(ArgumentOptions::default()),
        },
    }
}

/// A caller can leave out arguments at the end only, since the others are known by their places.
fn check_defaults(arguments: &[Argument]) -> syn::Result<()> {
    let mut rest = arguments.iter().skip_while(|argument| argument.default.is_none());
    let Some(first) = rest.next() else { return Ok(()) };
    match rest.find(|argument| argument.is_required()) {
        Some(after) => {
            let text = format!(
                "a caller can leave arguments out at the end only: `{after}` comes after `{first}`, which has a default, so \
                give `{after}` one, too, or write it before `{first}`",
                after = after.ident,
                first = first.ident,
            );
            Err(error(&after.ident, &text))
        }
        None => Ok(()),
    }
}

impl Argument {
    fn of((input, options): (&FnArg, ArgumentOptions)) -> syn::Result<Self> {
        let FnArg::Typed(typed) = input else {
            return Err(error(input, "`self` comes first"));
        };
        let Pat::Ident(pattern) = &*typed.pat else {
            return Err(error(&typed.pat, "an argument has a name, by which the description of the service knows it"));
        };
        let (inner, is_optional) = inside_option(&typed.ty);
        let form = Form::of_argument(&inner)?;
        let (ident, ty) = (pattern.ident.clone(), (*typed.ty).clone());
        Ok(Self { ident, ty, form, is_optional, default: options.default })
    }

    /// Whether each caller must give it.
    pub(crate) fn is_required(&self) -> bool {
        self.default.is_none() && !self.is_optional
    }
}

impl Form {
    /// Of a type that comes back as it was given.
    fn of(ty: &Type) -> Self {
        match arguments_of(ty, "Vec").as_deref() {
            Some([element]) if is_byte(element) => Self::Bytes,
            _ => Self::Plain,
        }
    }

    fn of_argument(ty: &Type) -> syn::Result<Self> {
        match ty {
            Type::Reference(reference) if reference.mutability.is_some() => {
                Err(error(reference, "the server has a copy: what it changes would not come back"))
            }
            Type::Reference(reference) => match &*reference.elem {
                Type::Path(path) if path.path.is_ident("str") => Ok(Self::BorrowedText),
                Type::Slice(slice) if is_byte(&slice.elem) => Ok(Self::BorrowedBytes),
                _ => Err(error(reference, "only `&str` and `&[u8]` can be borrowed: take others by value")),
            },
            Type::ImplTrait(ty) => Err(error(ty, "the types of a method must be known: `impl` says too little")),
            other => Ok(Self::of(other)),
        }
    }
}

impl Outcome {
    fn of(signature: &Signature, options: &MethodOptions) -> syn::Result<Self> {
        match (&signature.output, options.is_notification) {
            (ReturnType::Default, true) => {
                if options.timeout.is_some() || options.is_idempotent {
                    let text = "a notification is not answered: it has no `timeout` and is never repeated";
                    return Err(error(&signature.ident, text));
                }
                Ok(Self::Nothing)
            }
            (ReturnType::Type(_, ty), true) => {
                Err(error(ty, "a notification is not answered: leave the result out, or leave `notify` out"))
            }
            (ReturnType::Default, false) => Err(error(
                &signature.ident,
                "a method returns `Result<T, E>`; one that nobody waits for is marked `#[rpc(notify)]`",
            )),
            (ReturnType::Type(_, ty), false) => match arguments_of(ty, "Result").as_deref() {
                Some([value, fault]) => Self::answer(value, fault),
                _ => Err(error(
                    ty,
                    "a method returns `Result<T, E>` with both types written out: either may be what travels",
                )),
            },
        }
    }

    fn answer(value: &Type, fault: &Type) -> syn::Result<Self> {
        let (inner, is_optional) = inside_option(value);
        for ty in [&inner, fault] {
            if let Type::Reference(reference) = ty {
                let text = "what is borrowed does not come back from a server: return a `String`, a `Vec<u8>` or another \
                    type of its own";
                return Err(error(reference, text));
            }
        }
        let form = Form::of(&inner);
        Ok(Self::Answer { form, is_optional, value: Box::new(value.clone()), error: Box::new(fault.clone()) })
    }
}

/// The type in an `Option`, or the type itself; and which it was.
fn inside_option(ty: &Type) -> (Type, bool) {
    match arguments_of(ty, "Option").as_deref() {
        Some([inner]) => (inner.clone(), true),
        _ => (ty.clone(), false),
    }
}

/// The type arguments, if the last part of the type's path is `name`.
fn arguments_of(ty: &Type, name: &str) -> Option<Vec<Type>> {
    let Type::Path(path) = ty else { return None };
    let Path { segments, .. } = &path.path;
    let last = segments.last().filter(|segment| segment.ident == name)?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    let types = arguments.args.iter().map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty.clone()),
        _ => None,
    });
    types.collect()
}

fn is_byte(ty: &Type) -> bool {
    matches!(ty, Type::Path(path) if path.path.is_ident("u8"))
}

/// The name without what sets it apart from a word of the language.
pub(crate) fn unraw(ident: &Ident) -> String {
    let text = ident.to_string();
    text.strip_prefix("r#").map_or(text.clone(), str::to_owned)
}

fn combine(all: &mut Option<syn::Error>, next: syn::Error) {
    match all {
        Some(all) => all.combine(next),
        None => *all = Some(next),
    }
}

fn error(at: &impl ToTokens, text: &str) -> syn::Error {
    syn::Error::new_spanned(at, text)
}
