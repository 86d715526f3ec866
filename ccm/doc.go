// Package ccm is the wire: what a device of the ConfigMgr client protocol and its
// management point say to each other, as bytes in and data out.
//
// # The conversation
//
//	device                                        management point
//	  GET /SMS_MP/.sms_aut?MPLIST  ------------->   ParsePath, ParseAuthQuery
//	  <-------------  the site's management points, keys, certificates
//
//	  CCM_POST /ccm_system/request  ------------>   ReadMessage
//	    Msg header + ClientRegistrationRequest      ParseRegistration, Verify
//	  <-------------  Msg header + response         EncodeReply
//	    "your id is GUID:..., wait" (Status 1)
//	  CCM_POST  the same, RequestType Confirmation, until Status 0
//
//	  CCM_POST  RequestAssignments, signed  ---->   ReadMessage, Message.Verify
//	  <-------------  ReplyAssignments: where the policies are
//	  GET /SMS_MP/.sms_pol?{id}.1_00  ---------->   ParsePolicyQuery, ParsePolicyAuth
//	  <-------------  policy, sealed for the device when it is secret
//
//	  CCM_POST  inventory, state, status (Async)    ReadMessage
//	  <-------------  NoReply
//
// Through a gateway the same requests come with a prefix, a [Door] and a role's number,
// and a token in a header; the messages inside do not change.
//
// A message is two parts: a [Header] in UTF-16 and a payload, usually a zlib stream of
// UTF-16 XML. Signatures are RSA PKCS#1 v1.5 in reversed byte order, over bytes exactly
// as they stand in the message ([VerifyReversed]).
//
// # Where to start
//
// A server starts from [ParsePath] and [ReadMessage] and ends with [EncodeReply],
// [NoReply] or [WriteStatus]. A client uses [EncodeRequest] and [DecodeReply]. Every
// parser takes hostile input: it has budgets, never panics, and its errors are
// *catalog.Error with the codes of the wire.
//
// The package decides nothing: who a device is, what it may have and which proof a
// route needs is not its business, and it reads no clock, file or network, apart from
// WriteStatus, which owns the connection that it answers on.
//
// Facts of the protocol cite docs/protocol.md ("protocol.md 2.1") and the documents it
// is drawn from ("S0", "S2").
package ccm
