"""Acts as a client with MIT's GSSAPI and prints what it thinks of the server.

initiate.py ADDRESS HOST SCHEME [BINDING] - BINDING is the application data of the channel binding, in hex.
Prints "<status> complete=<bool> mutual=<bool>", or the client's error.
"""
import base64
import http.client
import ssl
import sys

import gssapi

SPNEGO = gssapi.OID.from_int_seq("1.3.6.1.5.5.2")
address, host, scheme = sys.argv[1], sys.argv[2], sys.argv[3]
binding = None
if len(sys.argv) > 4:
    binding = gssapi.raw.ChannelBindings(application_data=bytes.fromhex(sys.argv[4]))

context = gssapi.SecurityContext(
    name=gssapi.Name("HTTP@" + host, gssapi.NameType.hostbased_service),
    mech=SPNEGO,
    usage="initiate",
    flags=gssapi.RequirementFlag.mutual_authentication | gssapi.RequirementFlag.integrity,
    channel_bindings=binding,
)
token = base64.b64encode(context.step()).decode()
if scheme == "https":
    connection = http.client.HTTPSConnection(address, context=ssl._create_unverified_context())
else:
    connection = http.client.HTTPConnection(address)
connection.request("CCM_POST", "/ccm_system_windowsauth/request", headers={"Host": host, "Authorization": "Negotiate " + token})
answer = connection.getresponse()
_, _, reply = answer.getheader("WWW-Authenticate", "").partition(" ")
try:
    context.step(base64.b64decode(reply))
    mutual = bool(context.actual_flags & gssapi.RequirementFlag.mutual_authentication)
    print(answer.status, "complete=%s mutual=%s" % (context.complete, mutual))
except gssapi.exceptions.GSSError as error:
    print(answer.status, str(error))
