"""The loader that makes txAWS, written for Python 2, run on Python 3."""

from __future__ import annotations

import builtins
import configparser
import io
import json
import os
import sys
import urllib
import urllib.parse
from pathlib import Path

import attr
from twisted.internet import defer
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from buildbot_ec2ud.ec2 import _txaws

ROOT = Path(__file__).parents[2]


class FreshProcessTestCase(TestCase):
    """Tests of what importing does, which can be seen only where nothing has been imported yet."""

    timeout = 60

    @defer.inlineCallbacks
    def run_python(self, code, **environment):
        """Run *code* in a Python of its own and return what it printed, from JSON."""
        out, err, status = yield getProcessOutputAndValue(
            sys.executable, ["-c", code], {**os.environ, **environment}, str(ROOT)
        )
        self.assertEqual(status, 0, err.decode())
        return json.loads(out)


class GlobalsTests(FreshProcessTestCase):
    """Nothing outside of txAWS is touched."""

    @defer.inlineCallbacks
    def test_nothing_global_changes(self):
        """After txAWS was imported there are no builtins of Python 2, and no modules of Python 2."""
        seen = yield self.run_python("""if True:
            import buildbot_ec2ud.ec2, txaws.ec2.client
            import builtins, json, sys
            print(json.dumps({
                "loaded": type(txaws.ec2.client.__spec__.loader).__module__,
                "builtins": sorted({"unicode", "basestring", "long", "cmp"} & set(vars(builtins))),
                "modules": sorted({"urlparse", "ConfigParser", "StringIO", "elementtree"} & set(sys.modules)),
                "moved": [sys.modules[name].__name__ for name in ("urllib", "attr", "attr.validators")],
                "import": builtins.__import__.__module__,
            }))
            """)
        self.assertEqual(
            seen,
            {
                "loaded": "buildbot_ec2ud.ec2._txaws",
                "builtins": [],
                "modules": [],
                "moved": ["urllib", "attr", "attr.validators"],
                "import": "builtins",
            },
        )

    @defer.inlineCallbacks
    def test_install_twice(self):
        """However often it is installed, there is one finder."""
        finders = yield self.run_python("""if True:
            from buildbot_ec2ud.ec2 import _txaws
            import json, sys
            _txaws.install()
            _txaws.install()
            print(json.dumps([type(finder).__name__ for finder in sys.meta_path].count("Finder")))
            """)
        self.assertEqual(finders, 1)

    @defer.inlineCallbacks
    def test_after_txaws(self):
        """A txAWS that somebody else has imported before is left alone."""
        finders = yield self.run_python("""if True:
            import json, sys, types
            sys.modules["txaws"] = types.ModuleType("txaws")
            from buildbot_ec2ud.ec2 import _txaws
            print(json.dumps([type(finder).__name__ for finder in sys.meta_path].count("Finder")))
            """)
        self.assertEqual(finders, 0)


class OtherTxAWSTests(FreshProcessTestCase):
    """What happens when the installed txAWS is another one, or none."""

    @defer.inlineCallbacks
    def import_fake(self, util, **modules):
        """Import a package ``txaws`` with a module ``util`` of that source, in place of the real one.

        :param modules: more modules in the package, by name.
        """
        package = Path(self.mktemp()).absolute() / "txaws"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        for name, source in {"util": util, **modules}.items():
            (package / f"{name}.py").write_text(source)
        seen = yield self.run_python(
            """if True:
            from buildbot_ec2ud.ec2 import _txaws
            import json, sys
            _txaws.install()
            import txaws.util
            print(json.dumps({
                "file": txaws.util.__file__,
                "finders": [type(finder).__name__ for finder in sys.meta_path].count("Finder"),
                "loader": type(txaws.util.__spec__.loader).__name__,
                "path": txaws.util.urlparse("http://h/p").path,
            }))
            """,
            PYTHONPATH=str(package.parent),
        )
        self.assertEqual(seen.pop("file"), str(package / "util.py"))
        return seen

    @defer.inlineCallbacks
    def test_python3(self):
        """A txAWS for Python 3 is imported as any other package."""
        seen = yield self.import_fake("from urllib.parse import urlparse\n")
        self.assertEqual(seen, {"finders": 0, "loader": "SourceFileLoader", "path": "/p"})

    @defer.inlineCallbacks
    def test_both(self):
        """So is one for both Pythons, which asks for the old name first."""
        seen = yield self.import_fake(
            "try:\n    from urlparse import urlparse\nexcept ImportError:\n    from urllib.parse import urlparse\n"
        )
        self.assertEqual(seen, {"finders": 0, "loader": "SourceFileLoader", "path": "/p"})

    @defer.inlineCallbacks
    def test_python2(self):
        """One for Python 2 is given what it lacks."""
        seen = yield self.import_fake("from urlparse import urlparse\n")
        self.assertEqual(seen, {"finders": 1, "loader": "Loader", "path": "/p"})

    @defer.inlineCallbacks
    def test_relative(self):
        """A relative import is one of the package's own modules, whatever its name."""
        seen = yield self.import_fake(
            "from urlparse import urlparse\nfrom .StringIO import own\nassert own == 1\n", StringIO="own = 1\n"
        )
        self.assertEqual(seen["finders"], 1)

    @defer.inlineCallbacks
    def test_not_installed(self):
        """Without txAWS the import fails as imports do, and says what is missing."""
        seen = yield self.run_python("""if True:
            import importlib.machinery, json
            find_spec = importlib.machinery.PathFinder.find_spec
            importlib.machinery.PathFinder.find_spec = lambda name, path=None, target=None: (
                None if name.partition(".")[0] == "txaws" else find_spec(name, path, target)
            )
            try:
                import buildbot_ec2ud.ec2
            except ImportError as error:
                print(json.dumps({"name": error.name, "text": str(error)}))
            """)
        self.assertEqual(seen["name"], "txaws")
        self.assertIn("txAWS is not installed", seen["text"])


class FinderTests(TestCase):
    """What the finder finds."""

    def test_others(self):
        """Modules outside of txAWS never go through the finder, however alike their names."""
        directory = Path(self.mktemp())
        directory.mkdir()
        (directory / "txawsome.py").touch()
        self.assertIsNone(_txaws.Finder().find_spec("txawsome", [str(directory)]))
        for name in ("json", "txawsome", "urlparse", "buildbot_ec2ud.ec2._txaws"):
            self.assertIsNone(_txaws.Finder().find_spec(name), name)

    def test_txaws(self):
        """The package and what is inside it get the loader; what is not there is not found."""
        package = _txaws.Finder().find_spec("txaws")
        self.assertIsInstance(package.loader, _txaws.Loader)
        inside = package.submodule_search_locations
        self.assertIsInstance(_txaws.Finder().find_spec("txaws.util", inside).loader, _txaws.Loader)
        self.assertIsNone(_txaws.Finder().find_spec("txaws.no_such_module", inside))


class ImportTests(TestCase):
    """What ``import`` does in a module that the loader runs."""

    def names(self, code):
        """Run *code* as the loader does and return its names."""
        names = {"__builtins__": _txaws.Loader.builtins}
        exec(code, names)
        return names

    def test_moved(self):
        """Modules that have moved are found under their old names, together with what has moved into them."""
        names = self.names(
            "import urlparse, urllib, ConfigParser\n"
            "from urllib import quote, urlencode\n"
            "from StringIO import StringIO\n"
            "from xml.etree import ElementTree\n"
        )
        self.assertIs(names["urlparse"].urlparse, urllib.parse.urlparse)
        self.assertIs(names["urllib"].quote, urllib.parse.quote)
        self.assertIs(names["quote"], urllib.parse.quote)
        self.assertIs(names["ConfigParser"].SafeConfigParser, configparser.ConfigParser)
        self.assertIs(names["ConfigParser"].NoOptionError, configparser.NoOptionError)
        self.assertEqual(names["StringIO"](b"abc").read(), b"abc")
        self.assertFalse(hasattr(names["ElementTree"], "XMLTreeBuilder"))

    def test_elsewhere(self):
        """Other modules' imports stay what they were, also after an old name was imported."""
        self.names("import urlparse, urllib, StringIO, attr\nfrom attr import validators\n")
        self.assertIs(sys.modules["urllib"], urllib)
        self.assertIsNot(urllib, urllib.parse)
        self.assertIs(sys.modules["attr"], attr)
        self.assertFalse(hasattr(attr.validators, "provides"))
        self.assertRaises(TypeError, attr.ib, convert=int)
        for name in ("urlparse", "StringIO", "ConfigParser"):
            self.assertRaises(ModuleNotFoundError, __import__, name)
            self.assertNotIn(name, sys.modules)

    def test_missing(self):
        """What does not exist is an ImportError there too, so that alternatives can be tried."""
        for code in (
            "import no_such_module",
            "import urllib2",
            "import txaws.no_such_module",
            "from urlparse import no_such_name",
            "from urllib import no_such_name",
            "from xml.etree.ElementTree import XMLTreeBuilder",
        ):
            self.assertRaises(ImportError, self.names, code)

    def test_builtins(self):
        """The builtins of Python 2 are there, with those of Python 3."""
        names = self.names(
            "text = unicode('a')\n"
            "kinds = isinstance('', basestring), isinstance(1, long)\n"
            "compared = cmp(1, 2), cmp('a', 'a'), cmp(2, 1)\n"
            "size = len('abc')\n"
        )
        self.assertEqual(names["text"], "a")
        self.assertEqual(names["kinds"], (True, True))
        self.assertEqual(names["compared"], (-1, 0, 1))
        self.assertEqual(names["size"], 3)
        self.assertFalse(hasattr(builtins, "unicode"))


class ShimTests(TestCase):
    """What stands in for what Python 3 and attrs dropped, as txAWS uses it."""

    def test_xml(self):
        """Elements and attributes at any depth lose their namespaces, and keep everything else."""
        from txaws.util import XML

        root = XML(
            '<a xmlns="urn:1" xmlns:n="urn:2" one="1"><n:b n:two="2" three="3">text<c xmlns="urn:3">deep</c>tail</n:b>'
            "<d/></a>"
        )
        self.assertEqual([node.tag for node in root.iter()], ["a", "b", "c", "d"])
        self.assertEqual([node.attrib for node in root.iter()], [{"one": "1"}, {"two": "2", "three": "3"}, {}, {}])
        self.assertEqual(root.findtext("b/c"), "deep")
        self.assertEqual((root.find("b").text, root.find("b/c").tail), ("text", "tail"))

    def test_xml_bytes(self):
        """XML is taken as bytes too, in the encoding that it declares."""
        from txaws.util import XML

        text = "<?xml version='1.0' encoding='ISO-8859-1'?><a xmlns='urn:1'>f\N{LATIN SMALL LETTER E WITH ACUTE}e</a>"
        self.assertEqual(XML(text.encode("latin-1")).text, "f\N{LATIN SMALL LETTER E WITH ACUTE}e")

    def test_xml_broken(self):
        """XML that does not parse is the error that txAWS looks out for."""
        from txaws.client.base import ParseError
        from txaws.util import XML

        for broken in ("<a></b>", "<a>", ""):
            self.assertRaises(ParseError, XML, broken)

    def test_attr(self):
        """An attribute's ``convert`` converts, and ``provides`` checks the interface."""
        from pyrsistent import PMap
        from twisted.web.client import FileBodyProducer
        from txaws.client.base import RequestDetails

        required = {"region": b"r", "service": b"s", "method": b"GET", "url_context": None}
        producer = FileBodyProducer(io.BytesIO(b"abc"))
        details = RequestDetails(**required, metadata={"a": "b"}, body_producer=producer)
        self.assertIsInstance(details.metadata, PMap)
        self.assertEqual(dict(details.metadata), {"a": "b"})
        self.assertIs(details.body_producer, producer)
        self.assertIsNone(RequestDetails(**required).body_producer)
        error = self.assertRaises(TypeError, RequestDetails, **required, body_producer=object())
        self.assertIn("IBodyProducer", str(error))
