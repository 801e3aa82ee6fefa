"""What the ELF files of a library hold: their symbols and pages."""

import io
import tarfile

from elftools.elf.elffile import ELFFile

from targets.tools import PAGE_BYTES

TVM_C_API = {"TVMFFIErrorSetRaisedFromCStrParts", "TVMFFIFunctionCall", "TVMFFIHandleInitOnce",
             "TVMFFIEnvModLookupFromImports", "TVMFFIEnvModRegisterSystemLibSymbol"}
WEAK = {"__extendhfsf2", "__truncsfhf2"}  # float16 in and out of float32: every library brings its own
LIBM = {"expf", "logf", "sqrtf", "tanhf", "powf"}


def symbols(file, section=".symtab"):
    """Global symbols of an ELF file: those it defines, those it needs."""
    found = [symbol for symbol in ELFFile(file).get_section_by_name(section).iter_symbols()
             if symbol["st_info"]["bind"] in ("STB_GLOBAL", "STB_WEAK") and symbol.name]
    undefined = {symbol.name for symbol in found if symbol["st_shndx"] == "SHN_UNDEF"}
    return {symbol.name for symbol in found} - undefined, undefined


def objects(archive):
    """The ELF files in an archive, by name."""
    with tarfile.open(archive) as tar:
        return {member.name.removeprefix("./"): io.BytesIO(tar.extractfile(member).read())
                for member in tar.getmembers() if member.isfile()}


def archive_symbols(archive):
    found = [symbols(file) for file in objects(archive).values()]
    defined = set.union(*(defined for defined, _ in found))
    return defined, set.union(*(undefined for _, undefined in found)) - defined


def check_pages(library):
    """A shared library can be loaded where pages have 16 KB, and protected there after relocation."""
    with open(library, "rb") as file:
        segments = [segment.header for segment in ELFFile(file).iter_segments()]
    loaded = [segment for segment in segments if segment.p_type == "PT_LOAD"]
    assert loaded and all(segment.p_align == PAGE_BYTES for segment in loaded)
    (relro,) = [segment for segment in segments if segment.p_type == "PT_GNU_RELRO"]
    assert (relro.p_vaddr + relro.p_memsz) % PAGE_BYTES == 0
