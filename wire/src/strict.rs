//! JSON as it is taken from others. An object is never given as a list, says nothing twice, and no
//! text has a null character, which Postgres does not keep.
//!
//! Serde takes a list in place of a struct, and of two entries of a map the later one. So what one
//! reader refuses, or shows to somebody, would mean something else to another.

use std::{borrow::Cow, collections::BTreeSet, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeSeed, EnumAccess, Error, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
        VariantAccess, Visitor,
    },
};

/// Reads JSON strictly.
///
/// # Errors
///
/// When it is not JSON, not a `T`, or not strict.
pub fn from_slice<'de, T: Deserialize<'de>>(json: &'de [u8]) -> serde_json::Result<T> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = T::deserialize(Strict(&mut deserializer))?;
    deserializer.end()?;
    Ok(value)
}

/// As [`from_slice`].
///
/// # Errors
///
/// As of [`from_slice`].
pub fn from_str<'de, T: Deserialize<'de>>(json: &'de str) -> serde_json::Result<T> {
    from_slice(json.as_bytes())
}

/// A deserializer of JSON, or a part of one, that reads strictly.
#[derive(Debug)]
pub struct Strict<D>(pub D);

/// Calls the same method of the deserializer within.
macro_rules! pass_on {
    ($($method:ident($($argument:ident: $type:ty),*);)*) => {$(
        fn $method<V: Visitor<'de>>(
            self, $($argument: $type,)* visitor: V,
        ) -> Result<V::Value, D::Error> {
            self.0.$method($($argument,)* Any(visitor))
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Strict<D> {
    type Error = D::Error;

    pass_on! {
        deserialize_any();
        deserialize_bool();
        deserialize_i8();
        deserialize_i16();
        deserialize_i32();
        deserialize_i64();
        deserialize_i128();
        deserialize_u8();
        deserialize_u16();
        deserialize_u32();
        deserialize_u64();
        deserialize_u128();
        deserialize_f32();
        deserialize_f64();
        deserialize_char();
        deserialize_str();
        deserialize_string();
        deserialize_bytes();
        deserialize_byte_buf();
        deserialize_option();
        deserialize_unit();
        deserialize_unit_struct(name: &'static str);
        deserialize_newtype_struct(name: &'static str);
        deserialize_seq();
        deserialize_tuple(length: usize);
        deserialize_tuple_struct(name: &'static str, length: usize);
        deserialize_map();
        deserialize_identifier();
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(Any(visitor))
    }

    // A variant without content is its name alone, one with content an object.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(Variants(visitor))
    }

    // What nobody reads is looked at all the same.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(Any(visitor))
    }
}

/// A visitor that is shown strict values only.
struct Any<V>(V);

/// Shows a value as it is.
macro_rules! show {
    ($($method:ident($type:ty);)*) => {$(
        fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
            self.0.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Any<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    show! {
        visit_bool(bool);
        visit_i64(i64);
        visit_i128(i128);
        visit_u64(u64);
        visit_u128(u128);
        visit_f64(f64);
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<V::Value, E> {
        self.0.visit_str(plain(text)?)
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<V::Value, E> {
        self.0.visit_borrowed_str(plain(text)?)
    }

    fn visit_string<E: Error>(self, text: String) -> Result<V::Value, E> {
        plain(&text)?;
        self.0.visit_string(text)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(Strict(value))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.0.visit_newtype_struct(Strict(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Entries::of(entries))
    }
}

fn plain<E: Error>(text: &str) -> Result<&str, E> {
    if text.contains('\0') {
        Err(E::custom("a text has no null characters"))
    } else {
        Ok(text)
    }
}

/// Reads a part of a value strictly.
struct Part<S>(S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Part<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, part: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Strict(part))
    }
}

struct List<A>(A);

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for List<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(Part(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

/// The entries of an object, each key once.
struct Entries<'de, A> {
    entries: A,
    seen: BTreeSet<Cow<'de, str>>,
}

impl<A> Entries<'_, A> {
    fn of(entries: A) -> Self {
        let seen = BTreeSet::new();
        Self { entries, seen }
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Entries<'de, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let Some(key) = self.entries.next_key_seed(Key)? else {
            return Ok(None);
        };
        if !self.seen.insert(key.clone()) {
            // In the words in which serde says it of the fields of a struct.
            return Err(A::Error::custom(format_args!("duplicate field `{key}`")));
        }
        seed.deserialize(key.into_deserializer()).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.entries.next_value_seed(Part(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.entries.size_hint()
    }
}

/// Reads a key, without a copy where it has no escapes.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<Self::Value, D::Error> {
        key.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(plain(text)?.to_owned()))
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(plain(text)?))
    }
}

/// Shows an enum to its visitor.
struct Variants<V>(V);

impl<'de, V: Visitor<'de>> Visitor<'de> for Variants<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<V::Value, E> {
        self.0.visit_enum(plain(name)?.into_deserializer())
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<V::Value, A::Error> {
        self.0.visit_enum(OneEntry(Entries::of(entries)))
    }
}

/// A variant with content: an object with its name as the one key.
struct OneEntry<'de, A>(Entries<'de, A>);

impl<'de, A: MapAccess<'de>> EnumAccess<'de> for OneEntry<'de, A> {
    type Error = A::Error;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(
        mut self,
        seed: S,
    ) -> Result<(S::Value, Self), A::Error> {
        match self.0.next_key_seed(seed)? {
            Some(variant) => Ok((variant, self)),
            None => Err(A::Error::invalid_type(Unexpected::Map, &"one key")),
        }
    }
}

impl<'de, A: MapAccess<'de>> OneEntry<'de, A> {
    fn content<S: DeserializeSeed<'de>>(mut self, seed: S) -> Result<S::Value, A::Error> {
        let content = self.0.next_value_seed(seed)?;
        match self.0.next_key_seed(Key)? {
            None => Ok(content),
            Some(_) => Err(A::Error::invalid_type(Unexpected::Map, &"one key")),
        }
    }
}

impl<'de, A: MapAccess<'de>> VariantAccess<'de> for OneEntry<'de, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        Err(A::Error::invalid_type(Unexpected::Map, &"a text"))
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.content(seed)
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.content(Tuple(length, visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.content(Fields(visitor))
    }
}

struct Tuple<V>(usize, V);

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for Tuple<V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, content: D) -> Result<V::Value, D::Error> {
        content.deserialize_tuple(self.0, self.1)
    }
}

struct Fields<V>(V);

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for Fields<V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, content: D) -> Result<V::Value, D::Error> {
        content.deserialize_struct("", &[], self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Outer {
        name: String,
        #[serde(default)]
        labels: BTreeMap<String, String>,
        #[serde(default)]
        inner: Option<Inner>,
        #[serde(default)]
        choices: Vec<Choice>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Inner {
        number: u8,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    enum Choice {
        Bare,
        Held(Inner),
        Named {
            number: u8,
        },
        Both(u8, u8),
        #[serde(other)]
        Newer,
    }

    #[test]
    fn b18_what_is_strict_means_what_it_meant() {
        let text = r#"{"name":"a\u00fc\n","labels":{"x":"1","y":"1"},"inner":{"number":1},
            "choices":["Bare",{"Held":{"number":2}},{"Named":{"number":3}},{"Both":[4,5]}],
            "of a newer version":[{"x":[],"y":null}]}"#;
        let read: Outer = from_str(text).unwrap();
        assert_eq!(read, serde_json::from_str(text).unwrap());
        assert_eq!(
            (
                read.labels.len(),
                read.choices.len(),
                read.choices[2..].len()
            ),
            (2, 4, 2)
        );
    }

    #[test]
    fn b18_no_list_is_an_object_no_key_comes_twice_and_no_text_has_a_null_character() {
        for text in [
            // Lists.
            r#"["a"]"#,
            r#"{"name":"a","inner":[1]}"#,
            r#"{"name":"a","labels":[["x","1"]]}"#,
            r#"{"name":"a","choices":[{"Held":[1]}]}"#,
            r#"{"name":"a","choices":[{"Named":[1]}]}"#,
            // Names of variants as objects, and two at once.
            r#"{"name":"a","choices":[{"Bare":null}]}"#,
            r#"{"name":"a","choices":[{}]}"#,
            r#"{"name":"a","choices":[{"Held":{"number":1},"Bare":null}]}"#,
            // Keys that come twice, however they are written.
            r#"{"name":"a","name":"a"}"#,
            r#"{"name":"a","n\u0061me":"a"}"#,
            r#"{"name":"a","labels":{"x":"1","x":"1"}}"#,
            r#"{"name":"a","unknown":1,"unknown":1}"#,
            r#"{"name":"a","unknown":[{"x":{"y":1,"y":1}}]}"#,
            r#"{"name":"a","inner":{"number":1,"number":1}}"#,
            r#"{"name":"a","choices":[{"Named":{"number":1,"number":1}}]}"#,
            // Null characters.
            r#"{"name":"a\u0000"}"#,
            r#"{"name":"a","labels":{"x":"\u0000"}}"#,
            r#"{"name":"a","labels":{"\u0000":"x"}}"#,
            r#"{"name":"a","unknown":["\u0000"]}"#,
            r#"{"name":"a","choices":["\u0000"]}"#,
            // And what is no JSON.
            r#"{"name":"a"} {}"#,
        ] {
            assert!(from_str::<Outer>(text).is_err(), "{text}");
        }
    }
}
