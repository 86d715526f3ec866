package mp

import (
	"net/http"

	"postern/token"
)

// roots answers how the site root was replaced. Whoever asks does not know yet that this is a management point of the site, and needs not: the answer
// leads from the root that it trusts to the present one, or nowhere.
func (v *visit) roots() {
	body, err := token.MarshalRoots(v.mp.site.RootLinks())
	if err != nil {
		v.refuse(err)
		return
	}
	v.reply(http.StatusOK, "application/json", body)
}
