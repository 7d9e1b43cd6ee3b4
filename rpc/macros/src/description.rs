//! What is to be known of a service by those who have not its trait.

use proc_macro2::TokenStream;
use quote::quote;

use crate::model::{Argument, Method, Outcome, Service, unraw};

pub(crate) fn expand(service: &Service) -> TokenStream {
    let name = service.name.clone().unwrap_or_else(|| service.ident.to_string());
    let methods = service.methods.iter().map(|Method { conditions, name, arguments, outcome, options, .. }| {
        let required = arguments.iter().rposition(Argument::is_required).map_or(0, |last| last + 1);
        let arguments = arguments.iter().map(|Argument { ident, ty, .. }| {
            let (name, ty) = (unraw(ident), text(ty));
            quote!((#name, #ty))
        });
        let outcome = match outcome {
            Outcome::Nothing => quote!(::core::option::Option::None),
            Outcome::Answer { value, error, .. } => {
                let (value, error) = (text(value), text(error));
                quote!(::core::option::Option::Some((#value, #error)))
            }
        };
        let is_idempotent = options.is_idempotent;
        quote! {
            #(#conditions)*
            ::dhaga_rpc::__private::method_description(#name, &[#(#arguments),*], #required, #outcome, #is_idempotent)
        }
    });
    quote!(::dhaga_rpc::__private::service_description(#name, &[#(#methods),*]))
}

/// A type as it is written, without the blanks that the compiler's tokens are printed with.
fn text(ty: &syn::Type) -> String {
    let mut text = quote!(#ty).to_string();
    for (printed, written) in
        [(" :: ", "::"), (":: ", "::"), (" <", "<"), ("< ", "<"), (" >", ">"), (" ,", ","), ("& ", "&")]
    {
        text = text.replace(printed, written);
    }
    text
}
