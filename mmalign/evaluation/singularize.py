"""English singulars by rules, with the mistakes that published CHAIR numbers contain: "bus" becomes "bu", "four" becomes "fmy".

The lists and rules are Pattern's (University of Antwerp, BSD-3-Clause, after Bermi Ferrer's Inflector): see
pattern_license.txt.
Better rules would be another metric.
"""

import re
from functools import cache

# A word that is the END of one of these stays as it is: "scissors", but also "s".
_UNINFLECTED = """
bison bream breeches britches carp chassis christmas clippers cod contretemps corps debris diabetes djinn eland elk flounder gallows
georgia graffiti headquarters herpes high-jinks homework innings jackanapes mackerel measles mews mumps news pincers pliers proceedings
rabies salmon scissors series shears species swine swiss trout tuna whiting wildebeest advice bread butter cheese electricity equipment
fruit furniture garbage gravel happiness information ketchup knowledge love luggage mathematics mayonnaise meat mustard progress
research rice sand software understanding water
"""
# The plural of these stays as it is: "doggies". Two entries have a "^" that matches nothing, so that "ties" becomes "ty".
_ENDING_IN_IE = """
alergie auntie beanie birdie bogie bombie collie cookie cutie doggie eyrie freebie goonie groupie hankie hippie hoagie hottie indie
junkie laddie laramie lingerie meanie newbie nightie oldie ^pie pixie quickie reverie rookie softie sortie stoolie sweetie techie ^tie
toughie valkyrie veggie weenie yuppie zombie
"""
# A word that ENDS in one of these has that end replaced: "women", "policemen".
_IRREGULAR = """
atlantes:atlas atlases:atlas axes:axe beeves:beef brethren:brother children:child corpora:corpus corpuses:corpus ephemerides:ephemeris
feet:foot ganglia:ganglion geese:goose genera:genus genii:genie graffiti:graffito helves:helve kine:cow leaves:leaf loaves:loaf men:man
mongooses:mongoose monies:money moves:move mythoi:mythos numena:numen occipita:occiput octopodes:octopus opera:opus opuses:opus our:my
oxen:ox penes:penis penises:penis people:person sexes:sex soliloquies:soliloquy teeth:tooth testes:testis trilbys:trilby turves:turf
zoa:zoon
"""
# Words that join a compound whose first part is inflected: mothers-in-law.
_PREPOSITIONS = """
about above across after among around at athwart before behind below beneath beside besides between betwixt beyond but by during except
for from in into near of off on onto out over since till to under until unto upon with
"""

UNINFLECTED = tuple(_UNINFLECTED.split())
ENDING_IN_IE = tuple(_ENDING_IN_IE.split())
IRREGULAR = dict(pair.split(":") for pair in _IRREGULAR.split())
PREPOSITIONS = frozenset(_PREPOSITIONS.split())
# In this order, the first that matches. "i": in any case.
RULES = tuple(
    (re.compile(pattern, re.IGNORECASE if "i" in flags else 0), replacement)
    for pattern, replacement, flags in (
        (r"(.)ae$", r"\1a", "i"),
        (r"(.)itis$", r"\1itis", "i"),
        (r"(.)eaux$", r"\1eau", "i"),
        (r"(quiz)zes$", r"\1", "i"),
        (r"(matr)ices$", r"\1ix", "i"),
        (r"(ap|vert|ind)ices$", r"\1ex", "i"),
        (r"^(ox)en", r"\1", "i"),
        (r"(alias|status)es$", r"\1", "i"),
        (r"([octop|vir])i$", r"\1us", "i"),
        (r"(cris|ax|test)es$", r"\1is", "i"),
        (r"(shoe)s$", r"\1", "i"),
        (r"(o)es$", r"\1", "i"),
        (r"(bus)es$", r"\1", "i"),
        (r"([m|l])ice$", r"\1ouse", "i"),
        (r"(x|ch|ss|sh)es$", r"\1", "i"),
        (r"(m)ovies$", r"\1ovie", "i"),
        (r"(.)ombies$", r"\1ombie", "i"),
        (r"(s)eries$", r"\1eries", "i"),
        (r"([^aeiouy]|qu)ies$", r"\1y", "i"),
        (r"([aeo]l)ves$", r"\1f", ""),
        (r"([^d]ea)ves$", r"\1f", ""),
        (r"arves$", r"arf", ""),
        (r"erves$", r"erve", ""),
        (r"([nlw]i)ves$", r"\1fe", ""),
        (r"([lr])ves$", r"\1f", "i"),
        (r"([aeo])ves$", r"\1ve", ""),
        (r"(sive)s$", r"\1", "i"),
        (r"(tive)s$", r"\1", "i"),
        (r"(hive)s$", r"\1", "i"),
        (r"([^f])ves$", r"\1fe", "i"),
        (r"(^analy)ses$", r"\1sis", "i"),
        (r"((a)naly|(b)a|(d)iagno|(p)arenthe|(p)rogno|(s)ynop|(t)he)ses$", r"\1\2sis", "i"),
        (r"(.)opses$", r"\1opsis", "i"),
        (r"(.)yses$", r"\1ysis", "i"),
        (r"(h|d|r|o|n|b|cl|p)oses$", r"\1ose", "i"),
        (r"(fruct|gluc|galact|lact|ket|malt|rib|sacchar|cellul)ose$", r"\1ose", "i"),
        (r"(.)oses$", r"\1osis", "i"),
        (r"([ti])a$", r"\1um", "i"),
        (r"(n)ews$", r"\1ews", "i"),
        (r"s$", "", "i"),
    )
)


@cache
def singularize(word: str) -> str:
    """Return the singular of a lower-case word, as Pattern's ``singularize`` does."""
    first, *rest = word.split("-")
    if rest and rest[0] in PREPOSITIONS:
        return "-".join([singularize(first), *rest])
    if word.endswith("'"):
        return singularize(word[:-1]) + "'s"
    if any(entry.endswith(word) for entry in UNINFLECTED) or any(word.endswith(entry + "s") for entry in ENDING_IN_IE):
        return word
    plural = next((plural for plural in IRREGULAR if word.endswith(plural)), None)
    if plural is not None:
        return word.removesuffix(plural) + IRREGULAR[plural]
    return next((rule.sub(replacement, word) for rule, replacement in RULES if rule.search(word)), word)
